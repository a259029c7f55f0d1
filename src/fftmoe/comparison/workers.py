"""Runs the cells of a comparison in parallel, each in one process on one thread. A failed cell stops no other."""

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from functools import partial
from pathlib import Path

from fftmoe.engines.pool import WorkerDied, WorkerProcesses
from fftmoe.errors import FftmoeError
from fftmoe.setup.cells import Cell
from fftmoe.threads import one_thread

CellJob = tuple[Cell, Path]
Execute = Callable[[Cell, Path], object]  # picklable where there are several workers
Ended = tuple[int, str | None]  # the job's index, and the reason if it failed


def run_jobs(
    jobs: Sequence[CellJob], execute: Execute, workers: int, deadline: float | None = None
) -> Generator[Ended, None, None]:
    """Run `execute(*job)` for every job, and yield the outcome of each one when it ends.

    Args:
        workers: number of processes; 1 means this process.
        deadline: a time of `time.monotonic`; no job starts after it.
    """
    if workers == 1:
        return _run_here(jobs, execute, deadline)
    return _run_in_processes(jobs, execute, workers, deadline)


def _run_here(jobs: Sequence[CellJob], execute: Execute, deadline: float | None) -> Generator[Ended, None, None]:
    for index, job in enumerate(jobs):
        if _is_over(deadline):
            return
        with one_thread():
            reason = attempt(execute, job)
        yield index, reason


def _run_in_processes(
    jobs: Sequence[CellJob], execute: Execute, workers: int, deadline: float | None
) -> Generator[Ended, None, None]:
    waiting = iter(enumerate(jobs))
    running: dict[Future[str | None], int] = {}
    with closing(WorkerProcesses(workers, partial(_start_cells, execute))) as pool:
        while True:
            while len(running) < workers and not _is_over(deadline) and (following := next(waiting, None)) is not None:
                index, job = following
                running[pool.submit(job)] = index
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), _outcome(future)


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _outcome(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except WorkerDied as death:
        return f"its worker process died {death}; try fewer --workers"


def _start_cells(execute: Execute) -> Callable[[CellJob], str | None]:
    return partial(attempt, execute)


def attempt(execute: Execute, job: CellJob) -> str | None:
    """Run a job; return the reason if it failed, otherwise None.

    The first line of the reason is for people; a traceback follows if the error is not one of fftmoe's own.
    """
    try:
        execute(*job)
    except FftmoeError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
    return None
