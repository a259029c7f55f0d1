"""Engines on this machine deliver every message and keep the order, and errors name the client."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from fftmoe.backbones import load_backbone
from fftmoe.engines.base import Build, Engine, Handler, Reply
from fftmoe.engines.local import InProcess, WorkerPool, make_engine
from fftmoe.errors import InputError, RunError


def build(folder: Path) -> Handler:
    """Runs in the worker processes; the client does what its message says."""

    def handle(messages: Sequence[bytes]) -> list[bytes]:
        return [b"+".join([answer(message), *[b"together"] * (len(messages) > 1)]) for message in messages]

    def answer(message: bytes) -> bytes:
        what = message.decode()
        if what == "raise":
            raise KeyError("no such feature")
        if what == "refuse":
            raise InputError("client 7 has no such column")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait":  # until another client answers; a fifo blocks without looking at the clock
            return (folder / "fifo").read_bytes()
        if what == "answer":
            (folder / "fifo").write_bytes(b"answered")
        if what == "process":
            return f"{os.getpid()} {torch.get_num_threads()}".encode()
        return message[::-1]

    return handle


def deliver(engine: Engine, *messages: str, per_group: int = 1) -> list[tuple[int, bytes]]:
    """Deliver messages to clients 10, 11, … in groups of `at_once`; returns their replies."""
    requests = [(10 + i, message.encode()) for i, message in enumerate(messages)]
    groups = [requests[i : i + per_group] for i in range(0, len(requests), per_group)]
    answers = list(engine.run_clients(groups))
    assert all(isinstance(answer, Reply) and answer.seconds >= 0 for answer in answers)
    return [(answer.client_id, answer.message) for answer in answers if isinstance(answer, Reply)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[Engine]:
    """Two worker processes, which the tests share because they take seconds to start."""
    pool = make_engine(2, partial(build, folder))
    yield pool
    pool.close()


@pytest.fixture(params=["in process", "two workers"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return InProcess(build(folder)) if request.param == "in process" else request.getfixturevalue("pool")


def test_one_worker_is_this_process_and_may_share_its_handler(folder: Path):
    def refuse() -> Handler:
        raise AssertionError("a second model would be built")

    engine = make_engine(1, refuse, handler=build(folder))
    assert isinstance(engine, InProcess)
    assert deliver(engine, "process")[0][1].split()[0] == str(os.getpid()).encode()
    assert isinstance(make_engine(1, partial(build, folder)), InProcess)


def test_every_client_gets_its_message_and_replies_come_in_order(engine: Engine):
    words = [f"message {i}" for i in range(7)]
    assert deliver(engine, *words) == [(10 + i, word[::-1].encode()) for i, word in enumerate(words)]


def test_a_group_is_handled_in_one_call_and_gives_one_reply_for_each_client(engine: Engine):
    replies = deliver(engine, "ab", "cd", "ef", per_group=2)
    assert replies == [(10, b"ba+together"), (11, b"dc+together"), (12, b"fe")]


def test_an_error_in_a_group_names_its_clients(engine: Engine):
    with pytest.raises(RunError, match=r"one of the clients 10, 11, which run together, failed: KeyError"):
        deliver(engine, "first", "raise", "third", per_group=2)


def test_the_seconds_of_a_group_are_divided_equally(folder: Path):
    group = [(3, b"ab"), (5, b"cd"), (7, b"ef")]
    seconds = [seconds for _, _, seconds in InProcess(build(folder)).run_clients([group])]
    assert len(set(seconds)) == 1


def test_replies_keep_their_order_when_a_later_client_finishes_first(pool: Engine):
    # Client 10 can only finish after client 11 has begun to answer it.
    assert deliver(pool, "wait", "answer", "last") == [(10, b"answered"), (11, b"rewsna"), (12, b"tsal")]


def test_a_client_computes_on_one_thread_and_the_callers_setting_is_restored(engine: Engine):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert deliver(engine, "process")[0][1].split()[1] == b"1"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_client_that_raises_is_named_with_its_error(engine: Engine):
    with pytest.raises(RunError, match=r"client 11 failed: KeyError: 'no such feature'"):
        deliver(engine, "first", "raise", "third")
    assert deliver(engine, "again") == [(10, b"niaga")]  # the others can still be run


def test_a_client_that_raises_leaves_the_threads_as_they_were(folder: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RunError):
            deliver(InProcess(build(folder)), "raise")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_message_meant_for_people_passes_unchanged(engine: Engine):
    with pytest.raises(InputError, match=r"^client 7 has no such column$"):
        deliver(engine, "refuse")


def test_workers_are_other_processes(pool: Engine):
    workers = {reply.split()[0] for _, reply in deliver(pool, *["process"] * 8)}
    assert str(os.getpid()).encode() not in workers
    assert 1 <= len(workers) <= 2


def test_peak_memory_counts_the_workers_too(pool: Engine, folder: Path):
    in_process = InProcess(build(folder))
    assert in_process.peak_rss_mib() > 10  # an interpreter with torch takes more
    deliver(pool, "hello")
    assert pool.peak_rss_mib() > in_process.peak_rss_mib() + 10


def test_a_killed_worker_names_its_client_and_the_next_round_gets_another_worker(folder: Path):
    build_it: Build = partial(build, folder)
    pool = WorkerPool(1, build_it)
    try:
        with pytest.raises(RunError, match=r"worker process died while client 11 was .*exit status -9.*--workers 1"):
            deliver(pool, "first", "die", "third", "fourth")
        assert deliver(pool, "more") == [(10, b"erom")]
    finally:
        pool.close()


def test_a_worker_that_cannot_start_is_reported_with_the_first_client():
    pool = WorkerPool(1, cannot_start)
    try:
        with pytest.raises(RunError, match=r"worker process died while client 10 .*could not start"):
            deliver(pool, "first")
    finally:
        pool.close()


def cannot_start() -> Handler:
    sys.exit(3)


# Memory that workers share


# A client that answers with the KiB of memory that its process shares with no other process.
HEAVY = """
from pathlib import Path
import fftmoe.setup.compose

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

def build():
    return lambda messages: [str(private()).encode() for _ in messages]
"""
MAIN = """
import heavy
from fftmoe.engines.local import make_engine

if __name__ == "__main__":
    pool = make_engine(2, heavy.build)
    (_, reply, _), = pool.run_clients([[(3, b"")]])
    pool.close()
    print(int(reply) / heavy.private())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what memory is shared")
def test_workers_share_the_memory_of_their_imports(tmp_path: Path):
    """A process that imported everything itself would take as much memory as this one."""
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "main.py").write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert float(done.stdout) < 0.5


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_frozen_weights_are_mapped_from_the_checkpoint():
    """The operating system keeps mapped pages once for all processes."""
    model = load_backbone("builtin:minilm", num_labels=3)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line[0].split("-") for line in lines if line[-1].endswith("model.safetensors")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in mapped]
    frozen = [p for name, p in model.named_parameters() if "classifier" not in name]
    assert sum(p.numel() for p in frozen) > 22_000_000
    assert all(any(start <= p.data_ptr() < end for start, end in ranges) for p in frozen)
