"""A test fails whichever guard is removed, so every check in these modules is tested (see `guards.py`)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from guarded import CHANGED, GUARDED
from mutants import find_guards, find_mutants

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", GUARDED)
def test_every_module_of_the_table_has_guards(module: str):
    assert any(find_guards(source_of(module)))


@pytest.mark.parametrize("module", CHANGED)
def test_every_module_that_is_changed_has_something_to_change(module: str):
    assert any(find_mutants(source_of(module)))


def test_every_file_of_tests_exists():
    names = {name for table in (GUARDED, CHANGED) for files in table.values() for name in files}
    assert [name for name in sorted(names) if not (ROOT / "tests" / name).is_file()] == []


def source_of(module: str) -> str:
    return (ROOT / "src" / Path(*module.split(".")).with_suffix(".py")).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", GUARDED)
def test_a_test_fails_whichever_guard_is_removed(module: str):
    survivors: set[str] | None = None
    for name in GUARDED[module]:  # one file after the other, because the tests of a file share fixtures
        found = run_without_guards(module, f"tests/{name}")
        assert found == {"status": 0, "killed": ANY, "survivors": ANY, "red without a change": []}, name
        assert found["killed"]
        own = set(found["survivors"])
        survivors = own if survivors is None else survivors & own
        if not survivors:
            return
    assert not survivors


def run_without_guards(module: str, tests: str) -> dict[str, Any]:
    command = [sys.executable, "tests/guards.py", module, tests, "-m", "not slow and not network"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"failed": done.stderr[-2000:]}
