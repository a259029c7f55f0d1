"""Clients on this machine: in this process, or in worker processes that each hold one backbone.

A client always computes on one thread, so that the same bytes come out whatever the number of workers.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from fftmoe.engines.base import Build, Engine, Handler
from fftmoe.errors import FftmoeError, RunError


def make_engine(workers: int, build: Build, handler: Handler | None = None) -> Engine:
    """An engine with this many workers; 1 means in process, where `handler` (if given) shares the caller's model."""
    return InProcess(handler or build()) if workers == 1 else WorkerPool(workers, build)


class InProcess:
    """Clients one after another in this process."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def run_clients(self, requests: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, float]]:
        """See `Engine`."""
        for client_id, message in requests:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                reply, seconds, _ = _timed(self._handler, client_id, message)
            finally:
                torch.set_num_threads(threads)
            yield client_id, reply, seconds

    def close(self) -> None:
        """Nothing to end."""

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return _peak_rss_mib()


class WorkerPool:
    """Clients in `workers` processes; replies come in the order of the requests, whoever finishes first."""

    def __init__(self, workers: int, build: Build) -> None:
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(build,),
        )
        self._worker_peaks: dict[int, float] = {}

    def run_clients(self, requests: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, float]]:
        """See `Engine`."""
        futures = []
        for client_id, message in requests:
            try:
                futures.append((client_id, self._pool.submit(_run_in_worker, client_id, message)))
            except BrokenProcessPool as error:  # a worker died before everyone was queued
                raise _worker_died(client_id) from error
        for client_id, future in futures:
            try:
                reply, seconds, (pid, peak) = future.result()
            except BrokenProcessPool as error:
                raise _worker_died(client_id) from error
            self._worker_peaks[pid] = peak
            yield client_id, reply, seconds

    def close(self) -> None:
        """End the workers; work that has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return _peak_rss_mib() + sum(self._worker_peaks.values())


def _worker_died(client_id: int) -> RunError:
    return RunError(
        f"a worker process died while client {client_id} was running or queued; "
        "it was killed, perhaps for memory, or could not start (its own message is above): try --workers 1"
    )


# The handler of a worker process. A process pool can hand an initializer's result to its tasks only so.
_worker_handler: list[Handler] = []


def _start_worker(build: Build) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _worker_handler.append(build())


def _run_in_worker(client_id: int, message: bytes) -> tuple[bytes, float, tuple[int, float]]:
    return _timed(_worker_handler[0], client_id, message)


def _timed(handler: Handler, client_id: int, message: bytes) -> tuple[bytes, float, tuple[int, float]]:
    """Run one client; returns the reply, the seconds, and (process id, peak memory in MiB)."""
    start = time.perf_counter()
    try:
        reply = handler(message)
    except FftmoeError:
        raise
    except Exception as error:
        raise RunError(f"client {client_id} failed: {type(error).__name__}: {error}") from error
    return reply, time.perf_counter() - start, (os.getpid(), _peak_rss_mib())


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
