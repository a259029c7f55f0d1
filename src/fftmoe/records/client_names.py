"""Names clients in texts as the data does: whoever knows only their numbers writes `client 3`,
and this adds the name.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fftmoe.errors import FftmoeError

Names = Sequence[str] | None
"""By `client_id`, the names that the data gives clients; None where they have numbers only, or are private."""

_NUMBERED = re.compile(r"\bclient (\d{1,9})\b(?! \(['\"])")


def client_name(client_id: int | str, names: Names) -> str:
    """Return the name of a client, or its number where it has none."""
    number = str(client_id)
    return names[int(number)] if names and number.isdecimal() and int(number) < len(names) else number


def with_names(text: str, names: Names) -> str:
    """Return the text with the name of each numbered client: `client 3 failed` becomes `client 3 ('north') failed`."""
    if names is None:
        return text

    def named(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"{found[0]} ({names[number]!r:.60})" if number < len(names) else found[0]

    return _NUMBERED.sub(named, text)


@contextmanager
def naming_clients(names: Names) -> Iterator[None]:
    """Add the names of clients to the message of an error that leaves the context."""
    try:
        yield
    except FftmoeError as error:
        error.args = (with_names(str(error), names), *error.args[1:])
        raise
