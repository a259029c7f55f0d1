"""Runs side by side, each in one process on one thread; one that fails, or takes its process along, is told of."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from fftmoe.config import Recipe
from fftmoe.errors import FftmoeError

SECONDS_TO_END = 5

Execute = Callable[[Recipe, Path], object]  # picklable where there are several workers
Job = tuple[Recipe, Path]
Ended = tuple[int, str | None]  # the job's index, and why it failed


def run_jobs(
    jobs: Sequence[Job], execute: Execute, workers: int, deadline: float | None = None
) -> Generator[Ended, None, None]:
    """Run `execute(*job)` for every job, and yield each one's end as it comes.

    Args:
        workers: processes; 1 is this one.
        deadline: of `time.monotonic`; no job starts after it.
    """
    if workers == 1:
        return _run_here(jobs, execute, deadline)
    return _run_in_processes(jobs, execute, workers, deadline)


def _run_here(jobs: Sequence[Job], execute: Execute, deadline: float | None) -> Generator[Ended, None, None]:
    for index, job in enumerate(jobs):
        if _over(deadline):
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker process, so that the figures are the same
        try:
            reason = _attempt(execute, job)
        finally:
            torch.set_num_threads(threads)
        yield index, reason


def _run_in_processes(
    jobs: Sequence[Job], execute: Execute, workers: int, deadline: float | None
) -> Generator[Ended, None, None]:
    waiting = deque(enumerate(jobs))
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}
    try:
        while True:
            while waiting and len(busy) < workers and not _over(deadline):
                worker = idle.pop() if idle else _Worker(execute)
                index, job = waiting.popleft()
                worker.give(job)
                busy[worker.connection] = worker, index
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, index = busy.pop(connection)
                reason = worker.take()
                if worker.process.is_alive():
                    idle.append(worker)
                yield index, reason
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.end()


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


class _Worker:
    """A process that runs the jobs it is given. A pool would break whole when one of its processes dies."""

    def __init__(self, execute: Execute) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, execute), daemon=True)
        self.process.start()
        theirs.close()  # now only the process holds it, and its death ends our side

    def give(self, job: Job) -> None:
        with suppress(OSError):  # a process that has died says so when its answer is taken
            self.connection.send(job)

    def take(self) -> str | None:
        """The end of its job: why it failed, None when it did not."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            self.connection.close()
            return (
                f"its worker process died (exit status {self.process.exitcode}); it was killed, perhaps for memory, "
                "or could not start (its own message is above): try fewer --workers"
            )

    def end(self) -> None:
        self.process.terminate()
        self.process.join(SECONDS_TO_END)
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, execute: Execute) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the libraries' semaphores are given back
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            connection.send(_attempt(execute, connection.recv()))


def _end_with_parent() -> None:
    """A parent that was killed may be started again, and nobody else must write into its folders then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(execute: Execute, job: Job) -> str | None:
    """Why the job failed; the first line is for people, a traceback follows where nobody foresaw it."""
    try:
        execute(*job)
    except FftmoeError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
    return None
