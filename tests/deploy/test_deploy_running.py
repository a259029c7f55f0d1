"""One process per folder, told from a dead one, and ended when asked."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fftmoe.deploy.running import FACTS, holder, running, stop
from fftmoe.errors import InputError, RunError

HOLD = """
import signal, sys, time
from pathlib import Path
from fftmoe.deploy.running import running
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with running(Path(sys.argv[1]), {"output": "runs/x"}):
    print("held", flush=True)
    time.sleep(600)
"""


def held(folder: Path, how: str = "well") -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_held_by_one_process_which_says_who_it_is(tmp_path: Path):
    assert holder(tmp_path) is None
    with held(tmp_path) as process:
        assert holder(tmp_path) == {"output": "runs/x", "pid": process.pid}
        assert (tmp_path / FACTS).stat().st_mode & 0o077 == 0
        with pytest.raises(InputError, match=f"in use by process {process.pid};.*deploy stop"), running(tmp_path, {}):
            pass
        assert stop(tmp_path, 30.0)
        process.wait(timeout=30)
    assert holder(tmp_path) is None
    assert not stop(tmp_path, 1.0)


def test_what_a_killed_process_left_is_no_holder(tmp_path: Path):
    with held(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert (tmp_path / FACTS).exists()
    assert holder(tmp_path) is None
    with running(tmp_path, {"output": "again"}):
        assert (holder(tmp_path) or {})["output"] == "again"
    assert not (tmp_path / FACTS).exists()


def test_a_process_that_does_not_end_is_named(tmp_path: Path):
    with held(tmp_path, "deaf") as process:
        with pytest.raises(RunError, match=f"process {process.pid} .* kill -9 {process.pid}"):
            stop(tmp_path, 0.5)
        process.kill()
