"""Runs that end early: a full disk, and an interrupt from the keyboard."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from fftmoe.store import unpack_state
from shared_fixtures import Cli


@pytest.mark.parametrize("num_bytes", [7_000, 25_000])
def test_a_disk_that_fills_up_in_a_run_ends_it_with_one_line(
    cli: Cli,
    recipe_file: Path,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    num_bytes: int,
):
    """The first limit refuses the checkpoint, the second the report."""
    with full_disk(num_bytes):
        outcome = cli("run", recipe_file, "--output", tmp_path / "run", "--set", "evaluation.local_only=false")
    assert outcome.status == 2
    assert outcome.err.startswith("fftmoe: cannot write ")
    assert "File too large; free space there, or use a folder on another disk; " in outcome.err
    assert outcome.err.endswith(f"; then go on: fftmoe resume {tmp_path / 'run'}\n")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".tmp")]


def test_an_interrupted_run_ends_with_130_and_a_whole_checkpoint(recipe_file: Path, tmp_path: Path):
    main = "import signal, fftmoe.cli.app as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    sets = ["--set", "federation.rounds=1000000", "--set", "trackers=[]", "--output", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-c", main, "run", str(recipe_file), *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = take_until(process.stdout, "round   2")
        assert seen, process.communicate(timeout=60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = tmp_path / "run"
    assert err == f"fftmoe: interrupted; to continue after its last whole round: fftmoe resume {folder}\n"
    state = unpack_state(max((tmp_path / "run" / "checkpoints").glob("*.safetensors")).read_bytes())
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert state.round >= 1
    assert json.loads(rows[-1])["round"] in (state.round, state.round + 1)
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    assert not (tmp_path / "run" / "summary.json").exists()


def take_until(lines: Iterator[str], start: str) -> bool:
    return any(line.startswith(start) for line in lines)
