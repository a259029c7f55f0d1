"""Runs clients on this machine: in this process, or in worker processes that each hold one backbone.

A client always computes on one thread, so the same bytes come out for every number of workers.
"""

import multiprocessing
import multiprocessing.context
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from fftmoe.engines.base import Build, Engine, Group, Handler, Quota, Reply
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.engines.pool import WorkerDied, WorkerProcesses
from fftmoe.errors import FftmoeError, RunError
from fftmoe.threads import one_thread


def make_engine(workers: int, build: Build, handler: Handler | None = None) -> Engine:
    """Return an engine with this many workers; 1 means in process,
    where `handler` (if given) shares the caller's model.
    """
    return InProcess(handler or build()) if workers == 1 else WorkerPool(workers, build)


class Reliable:
    """Gives the properties that both engines for clients on this machine share."""

    @property
    def reliable(self) -> bool:
        """Return True: a client that fails ends the run, because the cause is a bug or this machine,
        never somebody else's.
        """
        return True

    def absent(self) -> tuple[int, ...]:
        """Return no client: none is ever absent."""
        return ()


class InProcess(Reliable):
    """Runs clients one after another in this process."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply]:
        """See `Engine`."""
        for group in groups:
            with one_thread():
                answer = run_group(self._handler, group)
            yield from answer.replies

    def close(self) -> None:
        """Do nothing: there are no workers to end."""

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return peak_rss_mib()


class WorkerPool(Reliable):
    """Runs clients in `workers` processes; replies come in the order of the requests, whichever finishes first."""

    def __init__(self, workers: int, build: Build) -> None:
        self._pool = WorkerProcesses(workers, partial(_start_clients, build), _context(build))
        self._worker_peaks: dict[int, float] = {}

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply]:
        """See `Engine`."""
        futures = [self._pool.submit(group) for group in groups]
        try:
            for group, future in zip(groups, futures, strict=True):
                try:
                    answer = future.result()
                except WorkerDied as death:
                    raise _died(group, death) from death
                self._worker_peaks[answer.process] = answer.peak_rss_mib
                yield from answer.replies
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the workers; clients that have not begun are dropped."""
        self._pool.close()

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return peak_rss_mib() + sum(self._worker_peaks.values())


class GroupAnswer(NamedTuple):
    """Holds the replies of a group, with the process that ran it and that process's peak of resident memory so far."""

    replies: list[Reply]
    process: int
    peak_rss_mib: float


def run_group(handler: Handler, group: Group) -> GroupAnswer:
    """Run the clients of a group; its seconds are divided equally among them.

    Raises:
        FftmoeError: the handler's own, unchanged. RunError: the handler failed in any other way.
    """
    start = time.perf_counter()
    try:
        messages = handler([message for _, message in group])
    except FftmoeError:
        raise
    except Exception as error:
        raise RunError(f"{_clients_of(group)} failed: {type(error).__name__}: {error}") from error
    seconds = (time.perf_counter() - start) / len(group)
    replies = [Reply(client_id, message, seconds) for (client_id, _), message in zip(group, messages, strict=True)]
    return GroupAnswer(replies, os.getpid(), peak_rss_mib())


def _start_clients(build: Build) -> partial[GroupAnswer]:
    return partial(run_group, build())


def _context(build: Build) -> multiprocessing.context.BaseContext:
    """Return a context in which workers are forked from a process that has only done the imports, so all of them share
    that memory.

    They share the frozen weights in any case: a checkpoint in the dtype of the computation is mapped and not read.
    Forking this process itself would copy locks that its threads hold.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(build, "func", build).__module__])
    return context


def _clients_of(group: Group) -> str:
    ids = ", ".join(str(client_id) for client_id, _ in group)
    return f"client {ids}" if len(group) == 1 else f"one of the clients {ids}, which run together,"


def _died(group: Group, death: WorkerDied) -> RunError:
    return RunError(
        f"a worker process died while {_clients_of(group)} was running {death}: try --workers 1, and in a script put "
        "what starts the run under `if __name__ == '__main__':`, because every worker imports the script"
    )
