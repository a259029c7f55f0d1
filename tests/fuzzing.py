"""Fuzzing: makes inputs that are almost valid, and watches what reading them does."""

import itertools
import math
import os
import re
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from fftmoe.errors import LONGEST, FftmoeError

ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SECONDS = 5.0  # of processor time for one input
WAITED = 60.0  # seconds of the clock for one input: another process may take most of them, but not a reader that waits
MEMORY = 2**30  # bytes that all inputs together may add to the address space
# What ends up in an input where bytes were: words that mean something to one reader or another.
TOKENS: tuple[bytes, ...] = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\0", b"\xff", b"\n", b"\t", b"- ", b"? ", b"| ", b"<<: "),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"9" * 30, b"9" * 5000, b"0.5", b"-0.0"),
    *(
        b"&a ",
        b"*a",
        b"&a [*a]",
        b"!!python/object/apply:os.system ['touch CANARY']",
        b"!!binary x",
        b"!!omap [",
        b"%YAML",
    ),
    *(b"../", b"/etc/passwd", b"/dev/zero", b"file:///etc/passwd", b"http://127.0.0.1:9/", b"~", b"a/b", b"..\\"),
    *(
        b"__class__",
        b"__import__('os').system('touch CANARY')",
        b"os.system",
        b"pickle",
        b"auto_map",
        b"trust_remote_code",
    ),
    *(
        b"cos\nsystem\n(S'touch CANARY'\ntR.",
        b"\x80\x04\x95",
        b"PK\x03\x04",
        b"\x1f\x8b",
        b"\x93NUMPY",
        b"%!PS",
        b"GIF89a",
    ),
    *(
        b'"F32"',
        b'"F64"',
        b'"BOOL"',
        b"[0,9223372036854775807]",
        b"[1000000000000]",
        b'"data_offsets"',
        b'"__metadata__"',
    ),
    *(b"\xff" * 8, b"\0" * 8, (2**63).to_bytes(8, "little"), (2**31).to_bytes(4, "little"), b"\xff\xff\xff\x7f"),
)
# What no reader of text and numbers does, by the names of Python's audit events.
FORBIDDEN = (
    *("exec", "compile", "import", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "code.__new__"),
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "subprocess.Popen"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "webbrowser.open"),
    *(
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.truncate",
        "shutil.rmtree",
    ),
)


class Reader(NamedTuple):
    """A function that reads untrusted bytes.

    Attributes:
        seeds: inputs that it reads as they are.
        raises: what it may raise of an input; anything else is a fault.
        share: of all inputs.
        writes: where it may write.
        others: inputs of which parts may be mixed in.
    """

    name: str
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    raises: tuple[type[Exception], ...]
    share: float
    writes: tuple[Path, ...] = ()
    others: tuple[bytes, ...] = ()


class Things:
    """The folder and the recipe from which readers and their valid inputs are made."""

    def __init__(self, folder: Path, recipe_values: dict[str, Any]) -> None:
        self.folder, self.recipe_values = folder, recipe_values

    def place(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def at(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Make a reader of bytes from a reader of files."""

    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return written


class Violation(BaseException):
    """A reader did something forbidden. This is no `Exception`, so that no reader catches it."""


class Watch:
    """Watches every audit event of this thread while it is on. Python cannot remove an audit hook."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._writes: tuple[str, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._thread != threading.get_ident():
            return
        if event in FORBIDDEN or (event == "open" and self._is_write(*arguments)):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _is_write(self, path: Any, mode: Any, flags: Any) -> bool:
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        return bool(writing) and not str(path).startswith(self._writes)

    @contextmanager
    def on(self, reader: Reader) -> Iterator[None]:
        """Watch while the block runs."""
        self._writes, self.seen = tuple(str(path) for path in reader.writes), []
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None


@contextmanager
def alarm() -> Iterator[None]:
    """Report a violation if a reader takes more than `SECONDS` for an input, or more than `MEMORY` for all inputs."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Violation(f"more than {SECONDS:g} s of work, or {WAITED:g} s of the clock")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        _time(0, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def mutated(seeds: Sequence[bytes], others: Sequence[bytes], random: np.random.Generator) -> bytes:
    """Change one of the seeds in a few places."""
    data = bytearray(seeds[int(random.integers(len(seeds)))])
    for _ in range(random.integers(1, 5)):
        start = int(random.integers(len(data) + 1) * (random.random() if random.random() < 0.5 else 1))
        stop = start + int(random.integers(1, 9))
        match random.integers(7):
            case 0 if start < len(data):
                data[start] ^= 1 << int(random.integers(8))
            case 1:
                data[start:stop] = random.bytes(stop - start)
            case 2:
                del data[start:stop]
            case 3:
                data[start:start] = data[start:stop]
            case 4:
                other = others[random.integers(len(others))]
                data[start:] = other[int(random.integers(len(other) + 1)) :]
            case 5:
                data[start:stop] = TOKENS[random.integers(len(TOKENS))]
            case _:
                data[start:start] = TOKENS[random.integers(len(TOKENS))] * int(random.choice([1, 1, 2, 50]))
    return bytes(data)


def _time(seconds: float, waited: float) -> None:
    """Ring after so many seconds of processor time, or of the clock; 0 for never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, waited)


def check_message(error: Exception) -> None:
    """Check that an error of the package says what is wrong in one line that cannot act on a terminal.

    Raises:
        Violation: it does not.
    """
    text = str(error)
    if not isinstance(error, FftmoeError):
        return
    if len(text.splitlines()) != 1 or ACTING.search(text) or len(text) > LONGEST:
        raise Violation(f"its message has {len(text)} characters: {text!r:.400}")


def outcome(reader: Reader, data: bytes, watch: Watch) -> str:
    """Read these bytes and return the outcome: `read`, or the name of the error.

    Raises:
        Violation: the reader did what none may do, or raised what it does not say.
    """
    _time(SECONDS, WAITED)
    result = "read"
    with watch.on(reader):
        try:
            reader.read(data)
        except reader.raises as error:
            result = type(error).__name__
            check_message(error)
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {error!s:.300}") from error
        finally:
            _time(0, 0)
    if watch.seen:
        raise Violation(watch.seen[0])
    return result


def fuzz(reader: Reader, cases: int, seed: int, watch: Watch, kept: Path, seconds: float = math.inf) -> Counter[str]:
    """Count the outcomes of `cases` inputs, and of the inputs that were stored because they were violations.

    Args:
        kept: the folder of these inputs. seconds: after which no further input is tried.

    Raises:
        AssertionError: there was a violation; the input has been kept in `kept`.
    """
    found: Counter[str] = Counter()
    with alarm():
        for data in [*reader.seeds, *(path.read_bytes() for path in sorted((kept / reader.name).glob("*")))]:
            found[outcome(reader, data, watch)] += 1
        others = [*reader.seeds, *reader.others]
        ends = time.monotonic() + seconds
        for case in itertools.takewhile(lambda _: time.monotonic() < ends, range(cases)):
            data = mutated(reader.seeds, others, np.random.default_rng([seed, case]))
            try:
                found[outcome(reader, data, watch)] += 1
            except Violation as violation:
                (kept / reader.name).mkdir(parents=True, exist_ok=True)
                (kept / reader.name / f"{seed}-{case}").write_bytes(data)
                raise AssertionError(f"{reader.name}, seed {seed}, case {case}: {violation}") from violation
    return found
