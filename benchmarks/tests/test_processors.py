"""The runs of the tests under settings that stand for other processors."""

import importlib
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

OUTPUT = """
INFO fftmoe: 7 failed clients of 13
FAILED tests/client/test_stack.py::test_one[a] - AssertionError: blocks.1.up
ERROR tests/head/test_head.py::test_two - RuntimeError
=== 1 failed, 31 passed, 2 skipped, 1 error in 7.11s ===
"""


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("processors")


@pytest.fixture
def pytest_runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of pytest: keeps the command and environment, and gives `status` and `output`."""
    seen: dict[str, Any] = {"status": 1, "output": OUTPUT}

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        if "-c" in command:
            return SimpleNamespace(stdout=env.get("ATEN_CPU_CAPABILITY", "AVX2").upper().replace("512", "2"))
        seen.update(command=command, environment=env)
        return SimpleNamespace(returncode=seen["status"], stdout=seen["output"], stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_a_failure_under_one_setting_is_counted_named_and_the_status(
    processors: Any, pytest_runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    assert processors.main(["onednn-sse41/2"]) == 1
    assert pytest_runs["environment"]["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert pytest_runs["environment"]["OMP_NUM_THREADS"] == "2"
    printed = capsys.readouterr().out
    assert "31 passed, 2 failed, 2 skipped" in printed
    assert "tests/client/test_stack.py::test_one[a]" in printed
    assert "tests/head/test_head.py::test_two" in printed


def test_all_green_is_status_zero_and_rounding_is_asked_of_pytest(processors: Any, pytest_runs: dict[str, Any]):
    pytest_runs.update(status=0, output="37 passed in 3.11s")
    assert processors.main(["rounding-2/1"]) == 0
    assert pytest_runs["command"][-2:] == ["--rounding", "2"]
    assert processors.main(["rounding-2/1", "--only", "tests/head"]) == 0
    assert pytest_runs["command"][-3:] == ["--rounding", "2", "tests/head"]


def test_what_the_processor_lacks_is_said_and_not_run(
    processors: Any, pytest_runs: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    assert processors.main(["aten-avx512/1"]) == 0
    assert "not run: this processor has no AVX512 (PyTorch reports AVX2)" in capsys.readouterr().out
    assert "command" not in pytest_runs


def test_a_run_without_tests_is_no_success(processors: Any, pytest_runs: dict[str, Any]):
    pytest_runs.update(status=5, output="no tests ran in 0.01s")
    with pytest.raises(SystemExit, match="pytest could not run under blas-oldest/1"):
        processors.main(["blas-oldest/1"])


def test_an_unknown_setting_is_refused_with_the_known_ones(processors: Any, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        processors.main(["aten-avx3/1"])
    assert ended.value.code == 2
    assert "aten-avx2/1" in capsys.readouterr().err
