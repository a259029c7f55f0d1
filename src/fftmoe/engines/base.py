"""How clients are run. An engine moves bytes; it knows nothing of the mathematics."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

Handler = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Clients that are run together: the server's messages in, the clients' messages out, in the same order."""

Build = Callable[[], Handler]
"""Makes a handler in whichever process it will run; must be picklable for worker processes."""

Group = Sequence[tuple[int, bytes]]
"""Clients that are run together, each with the server's message for it."""


class Reply(NamedTuple):
    """What a client answered, and the seconds that it took; those of a group are divided equally."""

    client_id: int
    message: bytes
    seconds: float


class Fault(NamedTuple):
    """A client from which the round gets nothing.

    Attributes:
        kind: `failed`: it said that it could not. `late`: it did not answer before the deadline. `absent`: it was not
            connected when it was to be asked. `spare`: the round had enough answers before its own. `stale`: it
            answered a round that was over, or once more; the round that runs when that is noticed goes on without a
            change.
            `rejected`: it answered what no honest client sends; never an engine's own, for engines read no answer.
    """

    client_id: int
    kind: str
    reason: str


class Engine(Protocol):
    """Runs the clients of a round."""

    @property
    def reliable(self) -> bool:
        """Whether every client answers, or the run ends: nobody needs to be asked in reserve."""
        ...

    def absent(self) -> Collection[int]:
        """The clients that could not be asked now."""
        ...

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
        """Deliver the messages, a group at a time; yield one reply or fault for each client, in any order.

        Args:
            enough: replies after which no more are waited for; everyone's when None.

        Raises:
            RunError: the run cannot go on; the message says whose fault it is.
        """
        ...

    def close(self) -> None:
        """End worker processes and free what the engine holds."""
        ...

    def peak_rss_mib(self) -> float:
        """Largest resident memory so far, summed over this process and its workers on this machine."""
        ...
