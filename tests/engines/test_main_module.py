"""Worker processes import the script that started them only where it defines what they need."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.engines.main_module import names_main, unimported_main

SCRIPT = """
import sys
from fftmoe.engines.pool import WorkerProcesses
print("imported", flush=True)
{definitions}
pool = WorkerProcesses(2, {start})
try:
    print(sorted(pool.submit(number).result() for number in range(5)))
finally:
    pool.close()
"""


def ran(folder: Path, definitions: str, start: str) -> list[str]:
    """What a script of this content prints."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(definitions=definitions, start=start))
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    return [*found.stdout.splitlines(), *(found.stderr.splitlines()[-1:] if found.returncode else [])]


def test_a_script_without_a_guard_starts_workers_once(tmp_path: Path):
    helper = tmp_path / "parts.py"
    helper.write_text("def square(number):\n    return number**2\ndef start():\n    return square\n")
    lines = ran(tmp_path, "import parts", "parts.start")
    assert lines == ["imported", "[0, 1, 4, 9, 16]"]


class Holder:
    """A value with anything in it."""

    def __init__(self, *values: object) -> None:
        self.values = values


@pytest.fixture
def of_script(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that the script defines."""
    made = type("Own", (), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "Own", made, raising=False)
    return made


def test_what_the_script_defines_is_found_wherever_it_is(of_script: type):
    for value in (of_script, of_script(), [1, {"a": of_script}], Holder(3, of_script()), (np.arange(3), of_script)):
        assert names_main(value)


@given(st.recursive(st.none() | st.text() | st.integers(), lambda own: st.lists(own) | st.dictionaries(st.text(), own)))
def test_values_of_other_modules_need_no_script(value: object):
    assert not names_main([value, Holder(value, torch.zeros(3), np.zeros(5)), len, Path("x"), "__main__"])


def test_what_the_script_defines_is_found_in_arrays_too(of_script: type):
    """An array may hold any objects, and the script may define a kind of array."""
    assert names_main(np.array([3, of_script()], dtype=object))
    assert not names_main(np.array([3, None], dtype=object))
    for base, values in ((np.ndarray, np.zeros(3)), (torch.Tensor, torch.zeros(3))):
        own = type("OwnArray", (base,), {"__module__": "__main__"})
        assert names_main([values.view(own) if base is np.ndarray else values.as_subclass(own)])  # type: ignore[arg-type]
        assert not names_main([values])


def test_no_number_of_an_array_is_read(of_script: type):
    """Data of any size pass at once, and stay in the memory where they are. No memory holds a copy of this array."""
    endless, tensor = np.broadcast_to(np.zeros(1), 2**50), torch.zeros(3)
    assert names_main([endless, tensor, of_script()])
    assert not tensor.is_shared()


def test_what_cannot_be_pickled_is_left_to_the_start_of_the_process():
    assert not names_main(lambda: None)


def test_the_script_is_as_it_was_after_the_block(monkeypatch: pytest.MonkeyPatch):
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = "script.py", SimpleNamespace(name="script")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    hidden: tuple[object, object] = ("not", "hidden")
    with suppress(ValueError), unimported_main():
        hidden = main.__file__, main.__spec__
        raise ValueError("on the way")
    assert hidden == (None, None)
    assert (main.__file__, main.__spec__.name) == ("script.py", "script")  # type: ignore[union-attr]
