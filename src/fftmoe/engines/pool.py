"""Keeps one pool of worker processes, for the clients of a round and for the runs of a comparison.

Each process computes on one thread, so the results are the same for every number of workers. A worker that dies costs
its own job and no other. All workers end when the process that started them ends, even if that one is killed: it may
be started again, and two processes must not write to the same folders.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from fftmoe.engines.main_module import names_main, unimported_main
from fftmoe.errors import FftmoeError
from fftmoe.shown import show_errors_from_now_on

SECONDS_TO_END = 5  # that a worker has to end by itself before it is killed

Job = TypeVar("Job")
JobResult = TypeVar("JobResult")


class WorkerDied(Exception):
    """Reports that a worker process ended before its job did, or could not be started; the message explains why."""

    def __init__(self, exit_status: int | None) -> None:
        known = "before it had started" if exit_status is None else f"(exit status {exit_status})"
        super().__init__(
            f"{known}; it was killed, perhaps for lack of memory, or it could not start (its own message is above)"
        )


class WorkerProcesses(Generic[Job, JobResult]):
    """Runs jobs in up to `workers` processes, which are started when they are first needed and used again.

    Args:
        start: called once in each worker; returns the function that takes a job. Jobs and results travel by pickle,
            and so does `start`.
        context: how processes are started; by default each one is a fresh interpreter.
    """

    def __init__(
        self, workers: int, start: Callable[[], Callable[[Job], JobResult]], context: BaseContext | None = None
    ) -> None:
        self._start = start
        self._context = context or multiprocessing.get_context("spawn")
        # One thread waits for each worker, so that a worker gets its next job while the caller is busy.
        self._threads = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()  # processes are started and reaped one at a time
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._closed = False

    def submit(self, job: Job) -> "Future[JobResult]":
        """Queue a job. The future raises the job's `FftmoeError`, or `WorkerDied`, which any other error leads to."""
        return self._threads.submit(self._run, job)

    def close(self) -> None:
        """End all workers, also those in the middle of a job; jobs that have not begun are cancelled."""
        with self._lock:
            self._closed = True
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.reap()
        self._threads.shutdown()

    def _run(self, job: Job) -> JobResult:
        try:
            worker = self._take()
        except (EOFError, OSError) as error:  # the process that forks others has died, or there are too many processes
            raise WorkerDied(None) from error
        try:
            answer = worker.ask(job)
        except (EOFError, OSError) as error:
            with self._lock:
                if not self._closed:
                    self._workers.remove(worker)
                worker.reap()
            raise WorkerDied(worker.process.exitcode) from error
        with self._lock:
            self._idle.append(worker)
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def _take(self) -> "_Worker":
        """Return an idle worker, or else a new one."""
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._idle:
                return self._idle.pop()
            worker = _Worker(self._context, self._start)
            self._workers.append(worker)
            return worker


class _Raised(NamedTuple):
    """Holds the answer of a job that failed as foreseen."""

    error: FftmoeError


class _Worker:
    """Holds one process and this end of its pipe."""

    def __init__(self, context: Any, start: Callable[[], Callable[[Any], Any]]) -> None:
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, start), daemon=True)
        with nullcontext() if names_main(start) else unimported_main():
            self.process.start()
        theirs.close()  # only the process holds its end now, so its death ends this one

    def ask(self, job: Any) -> Any:
        """Return the result of a job.

        Raises:
            EOFError, OSError: the process has died.
        """
        self._connection.send(job)
        return self._connection.recv()

    def reap(self) -> None:
        """Wait for the end of the process, and kill it if it takes too long."""
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection, start: Callable[[], Callable[[Any], Any]]) -> None:
    """Run a worker process: it starts, then answers jobs until nobody asks any more."""
    show_errors_from_now_on()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the libraries give back their semaphores
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    run = start()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            job = connection.recv()
            try:
                answer = run(job)
            except FftmoeError as error:
                answer = _Raised(error)
            connection.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
