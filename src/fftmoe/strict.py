"""Reads untrusted text with limits: it cannot name types, nest without bound, or expand in memory. Writes strict JSON.

No other module writes JSON (`tests/project/test_bans.py`). `json_text` is for results, which other programs read;
`exact_json` for what this program reads again; `hash_text` for what nobody reads.

The message of a ValueError from here is the end of a sentence: the caller's message first names the text's origin.
"""

import codecs
import errno
import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NoReturn

import yaml

MOST_BYTES = 2**20  # limit of a file that people read and write
MOST_RESULTS = 2**28  # limit of a file that the program writes and nobody edits
MOST_YAML = 2**17  # characters; parsing that many takes a second
DEEPEST = 20  # levels of nested brackets
MOST_BITS = 256  # of an integer in YAML
NO_FILES = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem")
"""Codecs of Python that no text file is written in, or that mean another encoding on another machine."""
_STRING = re.compile(r'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)  # a JSON string; matches any text in linear time


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read. ValueError: it is too large, or not a regular file.
    """
    with open_file(path) as file:
        return at_most(file, most)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Pipes and devices are refused, because reading one could block or never end.

    Raises:
        OSError: the file cannot be read. ValueError: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ValueError("it is not a file, but a pipe or a device")


def at_most(file: IO[bytes], most: int = MOST_BYTES) -> bytes:
    """Read all bytes of an open file.

    Raises:
        ValueError: there are more than `most` bytes.
    """
    data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more bytes than the {most:,} that are read")
    return data


def text_encoding(name: str) -> str:
    """Return the name of an encoding, which Python knows and in which text files are written.

    Raises:
        ValueError: it is none. The message is the end of a sentence that says who names it.
    """
    known = False
    try:
        known = codecs.lookup(name).name.replace("-", "_") not in NO_FILES
        b"a".decode(name)  # a LookupError for codecs of bytes, such as zlib, and of texts, such as rot13
    except UnicodeError:
        pass  # one byte is not a whole character of every encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError(
            f"{name!r:.60} is no encoding of text files; write a name such as utf-8, windows-1252, windows-1250, "
            "shift_jis or gb18030"
        )
    return name


def strict_json(text: str | bytes, deepest: int = DEEPEST) -> dict[str, Any]:
    """Parse a JSON object without repeated names, without NaN or infinity, and with at most `deepest` levels.

    Raises:
        ValueError: the text is not such an object.
    """
    text = text.decode() if isinstance(text, bytes) else text
    brackets = re.findall(r"[\[\]{}]", _STRING.sub("", text))
    depth = max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)
    if depth > deepest:
        raise ValueError(f"its JSON is nested {depth} deep; at most {deepest} is allowed")
    value = STRICT_DECODER.decode(text)
    if not isinstance(value, dict):
        raise ValueError(f"its JSON is {reprlib.repr(value)}; expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise ValueError(f"its JSON has the name {next(name for name in times if times[name] > 1)!r:.50} twice")
    return table


def _finite_number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"its JSON has {constant}, which is not a number")


STRICT_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite_number)
"""Raises a ValueError for an object that has a name twice, and for what is no number: `NaN`, `Infinity` and `1e999`."""


def is_number(value: Any) -> bool:
    """Return whether a value of JSON or YAML is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_text(values: Any, indent: int | None = None, ascii_only: bool = True) -> str:
    """Return strict JSON, which every reader accepts: a number that is infinite or not a number becomes null.

    Args:
        values: plain values.
        indent: spaces for each level; None for one line.
        ascii_only: escape all other characters, so that the text means the same in every encoding.
    """
    return json.dumps(_finite(values), indent=indent, allow_nan=False, ensure_ascii=ascii_only)


def exact_json(
    values: Any, indent: int | None = None, sort_keys: bool = False, compact: bool = False, default: Any = None
) -> str:
    """Return JSON of exactly these values, which this program can read again: a number that JSON does not have is an
    error.

    Args:
        values: plain values.
        indent: spaces for each level; None for one line. compact: without blanks.
        default: makes a plain value of another one.

    Raises:
        ValueError: a number is infinite or not a number.
    """
    separators = (",", ":") if compact else None
    return json.dumps(
        values, indent=indent, sort_keys=sort_keys, separators=separators, default=default, allow_nan=False
    )


def hash_text(values: Any, sort_keys: bool = True) -> str:
    """Return a text by which values are compared or hashed, and which nobody reads: it may hold any number."""
    return json.dumps(values, sort_keys=sort_keys, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def strict_yaml(text: str | bytes) -> Any:
    """Parse a YAML document of plain types.

    Raises:
        ValueError: the text is not valid YAML; it is larger or deeper than the limits; or it contains aliases, because
            a few lines of them can expand to more than the memory of a machine.
    """
    text = text.decode() if isinstance(text, bytes) else text
    if len(text) > MOST_YAML:
        raise ValueError(f"its YAML has more characters than the {MOST_YAML:,} that are read")
    try:
        return _loaded(text)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        message = " ".join(str(error).split())  # PyYAML's messages have several lines
        tab = "; it is a tab: indent with spaces" if r"character '\t'" in message else ""
        raise ValueError(message.replace(' in "<unicode string>"', "") + tab) from error


def yaml_text(values: Any, **style: Any) -> str:
    """Return plain values as a YAML document, the keys in their order.

    Args:
        style: options of `yaml.dump`.
    """
    dumper = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper
    return yaml.dump(values, Dumper=dumper, sort_keys=False, **style)


def _loaded(text: str) -> Any:
    """Return the value of a document. PyYAML's own parser, four times slower than libyaml, words what is wrong."""
    if not yaml.__with_libyaml__:
        return _Loader(text).get_single_data()
    try:
        return _FastLoader(text).get_single_data()
    except yaml.YAMLError:
        return _Loader(text).get_single_data()


class _Loader(yaml.SafeLoader):
    """Limits PyYAML's safe loader: no aliases, at most `DEEPEST` levels, and integers of at most `MOST_BITS`."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """See PyYAML."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(
                f"it has an alias, *{self.peek_event().anchor}; write out the value that the alias stands for"
            )
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """See PyYAML, whose makers of values raise any error for a text that is none, such as `!!bool maybe`."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {node.value!r:.60} is no value of the kind {kind}; {error}") from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML, which keeps the last of two equal keys."""
        table = super().construct_mapping(node, deep)
        if len(table) < len(node.value):
            times = Counter(key.value for key, _ in node.value)
            twice = next((name for name in times if times[name] > 1), next(iter(times)))
            raise yaml.YAMLError(f"it has the key {twice!r:.100} twice; remove one of the two")
        return table

    def construct_yaml_int(self, node: Any) -> int:
        """See PyYAML."""
        value = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise yaml.YAMLError(f"a number of more binary digits than the {MOST_BITS} that are allowed")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _FastLoader(_Loader):
    """Makes what `_Loader` makes, of what libyaml parses."""

    def __init__(self, text: str):
        super().__init__("")
        events: Any = yaml.CSafeLoader(text)
        self.check_event, self.peek_event, self.get_event = events.check_event, events.peek_event, events.get_event
