"""Helpers for the tests of hostile files: code that leaves a trace if it runs, and limits on the cost of a refusal."""

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fftmoe.errors import FftmoeError
from spoiling import put_together

UNITS = 250  # of processor time, of which the longest refusal takes 80; a machine takes one for `_unit`
MOST_MIB = 64.0
CLEAR = Path("/proc/self/clear_refs")  # forgets the peak


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def lay_canary(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A file that exists if hostile code has run, as a command or as the module `evil`."""
    (folder / "modules").mkdir()
    (folder / "modules" / "evil.py").write_text(f"import os\nos.mknod({str(folder / 'canary')!r})\nclass Evil: pass\n")
    patch.syspath_prepend(str(folder / "modules"))
    return folder / "canary"


def refused(read: Callable[[], object], reason: str, kind: type[Exception] = FftmoeError) -> None:
    """Check that a call is refused quickly, with little memory, and for this reason."""
    before = _memory("VmRSS")
    if CLEAR.exists():
        CLEAR.write_text("5")
    unit, start = _unit(), time.process_time()
    with pytest.raises(kind, match=reason) as error:
        read()
    assert time.process_time() - start < UNITS * max(unit, _unit())
    assert _memory("VmHWM") - before < MOST_MIB
    assert len(str(error.value)) < 2000


def _unit() -> float:
    """Seconds of processor time that this machine needs now for a fixed piece of work."""
    start = time.process_time()
    sum(number * number for number in range(200_000))
    return time.process_time() - start


def _memory(which: str) -> float:
    """The resident memory in MiB, now or at its peak; 0 if the kernel does not report it."""
    if not CLEAR.exists():
        return 0.0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def say(file: Path, **values: Any) -> None:
    """Write these values to a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def one_tensor(shape: list[int], offsets: list[int]) -> bytes:
    """Make a safetensors file that declares one tensor and holds no bytes of it."""
    return put_together(json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}), b"")


BOMBS = {
    "endless header": b"\xff" * 8 + b"{}",
    "header of 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "a million million numbers": one_tensor([10**12], [0, 4 * 10**12]),
    "numbers beyond counting": one_tensor([2**40, 2**40], [0, 2**62]),
    "a shape without bytes": one_tensor([10**12, 0], [0, 0]),
    "deep": put_together('{"a":' * 10**5, b""),
    "pickle": pickle.dumps({"a": Code("true")}),
    "nothing": b"",
}
every_bomb = pytest.mark.parametrize("bomb", BOMBS)
