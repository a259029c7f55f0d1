"""The pool of worker processes: jobs in, results out, a dead worker costs its own job, and no worker is left behind."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

from fftmoe.engines.pool import WorkerDied, WorkerProcesses
from fftmoe.errors import InputError, OutputError
from fftmoe.threads import one_thread


def start() -> Callable[[str], str]:
    """Runs in the worker processes: the result is the job in reverse, or what the job says."""

    def run(job: str) -> str:
        if job == "refuse":
            raise InputError("this job has no data")
        if job.startswith("exit"):
            os._exit(int(job.removeprefix("exit")))
        if job == "raise":
            raise KeyError("unforeseen")
        if job == "process":
            return f"{os.getpid()} {torch.get_num_threads()}"
        if job.startswith("/"):  # a folder, made by a job that then never ends
            Path(job).mkdir()
            time.sleep(600)
        return job[::-1]

    return run


@pytest.fixture(scope="module")
def pool() -> Iterator["WorkerProcesses[str, str]"]:
    pool = WorkerProcesses[str, str](2, start)
    yield pool
    pool.close()


def test_every_job_gets_its_own_result(pool: "WorkerProcesses[str, str]"):
    jobs = [f"job {i}" for i in range(9)]
    futures = [pool.submit(job) for job in jobs]
    assert [future.result() for future in futures] == [job[::-1] for job in jobs]


def test_workers_are_other_processes_with_one_thread_each(pool: "WorkerProcesses[str, str]"):
    found = {pool.submit("process").result() for _ in range(8)}
    assert all(text.split()[1] == "1" for text in found)
    assert str(os.getpid()) not in {text.split()[0] for text in found}
    assert len(found) <= 2


def test_an_error_meant_for_people_passes_unchanged(pool: "WorkerProcesses[str, str]"):
    with pytest.raises(InputError, match=r"^this job has no data$"):
        pool.submit("refuse").result()
    assert pool.submit("again").result() == "niaga"


def test_a_worker_that_dies_costs_only_its_own_job(pool: "WorkerProcesses[str, str]"):
    futures = {job: pool.submit(job) for job in ("exit9", "one", "two", "raise", "three", "exit7", "four")}
    wait(futures.values())
    died = {job: str(future.exception()) for job, future in futures.items() if future.exception() is not None}
    assert died.keys() == {"exit9", "raise", "exit7"}
    assert all(isinstance(futures[job].exception(), WorkerDied) for job in died)
    assert "exit status 9" in died["exit9"]
    assert "exit status 7" in died["exit7"]
    assert [futures[job].result() for job in ("one", "two", "three", "four")] == ["eno", "owt", "eerht", "ruof"]


@pytest.mark.parametrize("error", [EOFError(), OSError(11, "Resource temporarily unavailable")], ids=repr)
def test_a_worker_that_cannot_be_started_costs_only_its_own_job(error: Exception, monkeypatch: pytest.MonkeyPatch):
    """The process that forks the workers can be killed too, and whoever asks it then meets the end of its pipe."""
    spawn = multiprocessing.get_context("spawn")
    pool = WorkerProcesses[str, str](1, start, spawn)
    with monkeypatch.context() as patch:

        def fail(process: object) -> None:
            raise error

        patch.setattr(spawn.Process, "start", fail)
        found = pool.submit("one").exception()
    assert isinstance(found, WorkerDied)
    assert str(found).startswith("before it had started; it was killed")
    assert pool.submit("two").result() == "owt"
    pool.close()


def test_closing_ends_a_worker_in_the_middle_of_a_job(tmp_path: Path):
    others = multiprocessing.active_children()
    pool = WorkerProcesses[str, str](1, start)
    running, queued = pool.submit(str(tmp_path / "begun")), pool.submit("later")
    until = time.monotonic() + 120
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    pool.close()
    assert isinstance(running.exception(), WorkerDied)
    assert queued.cancelled()
    assert set(multiprocessing.active_children()) <= set(others)
    with pytest.raises(RuntimeError):
        pool.submit("more")


def test_one_thread_gives_the_callers_setting_back_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(OutputError):
            fail_on_one_thread()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def fail_on_one_thread() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        raise OutputError("full")


MAIN = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[1])
from fftmoe.engines.pool import WorkerProcesses
from test_pool import start

if __name__ == "__main__":
    pool = WorkerProcesses(2, start, multiprocessing.get_context(sys.argv[2]))
    for future in [pool.submit(folder) for folder in sys.argv[3:]]:
        future.result()
"""


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, method: str):
    """Otherwise a run that is started again would share its folders with them."""
    (tmp_path / "main.py").write_text(MAIN)
    folders = [tmp_path / "0", tmp_path / "1"]
    command = [sys.executable, str(tmp_path / "main.py"), str(Path(__file__).parent), method, *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not all(folder.exists() for folder in folders):
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
        process.communicate(timeout=30)  # the workers hold the pipe too, so it closes when the last of them ends
