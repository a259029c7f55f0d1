"""Text from anyone, read with limits: it cannot name types, nest without end, or unfold to more than it is.

What is wrong is a ValueError whose message ends a sentence about where the text is from.
"""

import errno
import json
import os
import re
import reprlib
import stat
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NoReturn

import yaml

MOST_BYTES = 2**20  # of a file that a person may read
MOST_YAML = 2**17  # which takes a second to parse
DEEPEST = 20  # brackets within brackets
MOST_BITS = 256  # of a number in YAML
_STRING = re.compile(r'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)  # of JSON, in one pass whatever the text


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """A file's bytes, if it is one and has no more than `most`.

    Raises:
        OSError: it cannot be read. ValueError: it is too large, or no file.
    """
    with open_file(path) as file:
        return at_most(file, most)


def open_file(path: Path) -> IO[bytes]:
    """A file for reading. Of a pipe one would wait for a writer, and a device may never end.

    Raises:
        OSError: it cannot be read. ValueError: it is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ValueError("it is no file, but a pipe or a device")


def at_most(file: IO[bytes], most: int = MOST_BYTES) -> bytes:
    """All that a file holds.

    Raises:
        ValueError: that is more than `most` bytes.
    """
    data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes, which are the most that are read")
    return data


def strict_json(text: str | bytes, deepest: int = DEEPEST) -> dict[str, Any]:
    """A JSON object with no name twice, no NaN, and no more depth than that.

    Raises:
        ValueError: it is none.
    """
    text = text.decode() if isinstance(text, bytes) else text
    brackets = re.findall(r"[\[\]{}]", _STRING.sub("", text))
    depth = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    if depth > deepest:
        raise ValueError(f"its JSON is nested {depth} deep, and at most {deepest} was expected")
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError(f"its JSON is {reprlib.repr(value)}, and an object was expected")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"its JSON has a name twice among {reprlib.repr([name for name, _ in pairs])}")
    return table


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"its JSON has {constant}, which is no number")


def strict_yaml(text: str | bytes) -> Any:
    """The value of a YAML document of plain types.

    Raises:
        ValueError: it is none, or larger or deeper than a person writes, or has aliases, of which a few lines unfold to
            more than a machine can hold.
    """
    text = text.decode() if isinstance(text, bytes) else text
    if len(text) > MOST_YAML:
        raise ValueError(f"its YAML has {len(text)} characters, and at most {MOST_YAML} are read")
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        message = " ".join(str(error).split())  # YAML's take several lines
        tab = "; it is a tab: indent with spaces" if r"character '\t'" in message else ""
        raise ValueError(message.replace(' in "<unicode string>"', "") + tab) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for documents without aliases, of little depth, and with numbers that can be printed."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """See PyYAML."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}; write out what it stands for")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_yaml_int(self, node: Any) -> int:
        """See PyYAML."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise yaml.YAMLError(f"a number of {value.bit_length()} binary digits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
