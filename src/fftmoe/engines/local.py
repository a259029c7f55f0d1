"""Clients on this machine: in this process, or in worker processes that each hold one backbone.

A client always computes on one thread, so that the same bytes come out whatever the number of workers.
"""

import multiprocessing
import multiprocessing.context
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from fftmoe.engines.base import Build, Engine, Group, Handler, Reply
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import FftmoeError, RunError


def make_engine(workers: int, build: Build, handler: Handler | None = None) -> Engine:
    """An engine with this many workers; 1 means in process, where `handler` (if given) shares the caller's model."""
    return InProcess(handler or build()) if workers == 1 else WorkerPool(workers, build)


class Reliable:
    """What holds of clients on this machine."""

    @property
    def reliable(self) -> bool:
        """A client that fails ends the run: it is a bug, or the machine's trouble, and never a stranger's."""
        return True

    def absent(self) -> tuple[int, ...]:
        """Nobody."""
        return ()


class InProcess(Reliable):
    """Clients one after another in this process."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply]:
        """See `Engine`."""
        for group in groups:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                replies, _ = _timed(self._handler, group)
            finally:
                torch.set_num_threads(threads)
            yield from replies

    def close(self) -> None:
        """Nothing to end."""

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return peak_rss_mib()


class WorkerPool(Reliable):
    """Clients in `workers` processes; replies come in the order of the requests, whoever finishes first."""

    def __init__(self, workers: int, build: Build) -> None:
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=_context(build),
            initializer=_start_worker,
            initargs=(build,),
        )
        self._worker_peaks: dict[int, float] = {}

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply]:
        """See `Engine`."""
        futures = []
        for group in groups:
            try:
                futures.append((group, self._pool.submit(_run_in_worker, group)))
            except BrokenProcessPool as error:  # a worker died before everyone was queued
                raise _worker_died(group) from error
        for group, future in futures:
            try:
                replies, (pid, peak) = future.result()
            except BrokenProcessPool as error:
                raise _worker_died(group) from error
            self._worker_peaks[pid] = peak
            yield from replies

    def close(self) -> None:
        """End the workers; work that has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return peak_rss_mib() + sum(self._worker_peaks.values())


def _context(build: Build) -> multiprocessing.context.BaseContext:
    """Workers are forked from a process that has done nothing but the imports, so that all share that memory.

    The frozen weights they share in any case: a checkpoint in the dtype that is computed with is mapped, not read.
    Forking this process itself would copy locks that its threads hold.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(build, "func", build).__module__])
    return context


def _named(group: Group) -> str:
    ids = ", ".join(str(client_id) for client_id, _ in group)
    return f"client {ids}" if len(group) == 1 else f"one of the clients {ids}, which run together,"


def _worker_died(group: Group) -> RunError:
    return RunError(
        f"a worker process died while {_named(group)} was running or queued; "
        "it was killed, perhaps for memory, or could not start (its own message is above): try --workers 1, and in a "
        "script of your own put what runs under `if __name__ == '__main__':`, since every worker reads the script"
    )


# The handler of a worker process. A process pool can hand an initializer's result to its tasks only so.
_worker_handler: list[Handler] = []


def _start_worker(build: Build) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _worker_handler.append(build())


def _run_in_worker(group: Group) -> tuple[list[Reply], tuple[int, float]]:
    return _timed(_worker_handler[0], group)


def _timed(handler: Handler, group: Group) -> tuple[list[Reply], tuple[int, float]]:
    """Run a group; returns the replies, and (process id, peak memory in MiB)."""
    start = time.perf_counter()
    try:
        replies = handler([message for _, message in group])
    except FftmoeError:
        raise
    except Exception as error:
        raise RunError(f"{_named(group)} failed: {type(error).__name__}: {error}") from error
    seconds = (time.perf_counter() - start) / len(group)
    each = [Reply(client_id, reply, seconds) for (client_id, _), reply in zip(group, replies, strict=True)]
    return each, (os.getpid(), peak_rss_mib())
