"""fftmoe's messages over Flower's grid: each client ends with exactly one reply or fault, before the deadline."""

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fftmoe.engines import flower
from fftmoe.engines.base import Fault, Quota, Reply
from fftmoe.engines.flower import FlowerEngine, Unreadable, ask
from fftmoe.engines.flower_messages import (
    DAY_SECONDS,
    MOST_FAILURES,
    MOST_JOB,
    MOST_LOGGED,
    FailureLog,
    JobValues,
    make_client_app,
    pack_query,
    pack_reply,
    pack_request,
    unpack_job,
    unpack_profile,
    unpack_reply,
    unpack_request,
)
from fftmoe.errors import InputError
from fftmoe.report.progress import Progress

JOB = {"recipe": {"seed": 3}, "labels": ["a", "ü"]}
NODES = {0: 101, 1: 103, 2: 107, 4: 109}


pytestmark = pytest.mark.usefixtures("in_a_flower_run")


class FakeGrid:
    """Nodes that answer at the next look, or as `behave` says: `lost`, `slow` (one look later), `twice`, `refused`."""

    def __init__(self, app: ClientApp, behave: Callable[[int], str] = lambda node: "well") -> None:
        self._app, self._behave = app, behave
        self._inbox: dict[str, Message] = {}
        self._looked: set[str] = set()
        self.pushed: list[Message] = []
        self.connected = set(NODES.values())

    def get_node_ids(self) -> Iterable[int]:
        return self.connected

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.pushed.append(message)
            identity = f"m{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = identity
            if self._behave(message.metadata.dst_node_id) == "refused":
                ids.append("")
                continue
            ids.append(identity)
            self._inbox[identity] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        answers = []
        for identity in list(message_ids):
            message = self._inbox.get(identity)
            if message is None:
                continue
            how = self._behave(message.metadata.dst_node_id)
            if how == "lost" or (how == "slow" and identity not in self._looked):
                self._looked.add(identity)
                continue
            del self._inbox[identity]
            if how == "gone":
                answers.append(
                    Message(Error(code=3, reason="node unavailable in /home/site/rows.csv"), reply_to=message)
                )
            else:
                answers += [self._app(message, cast(Any, None))] * (2 if how == "twice" else 1)
        return answers


def backwards(job: JobValues, context: object) -> Callable[[Sequence[bytes]], list[bytes]]:
    assert job == JOB

    def handle(messages: Sequence[bytes]) -> list[bytes]:
        if b"secret" in messages:
            raise ValueError("a private row of data")
        if b"refuse" in messages:
            raise InputError("budget 'small' cannot hold one expert; raise memory_mib")
        return [message[::-1] for message in messages]

    return handle


def engine(behave: Callable[[int], str] = lambda node: "well", seconds: float = 60.0) -> tuple[FlowerEngine, FakeGrid]:
    grid = FakeGrid(make_client_app(backwards, lambda job, context: {"tier": "small"}), behave)
    return FlowerEngine(cast(Grid, grid), NODES, JOB, seconds), grid


def run(engine: FlowerEngine, *groups: Sequence[tuple[int, bytes]], enough: int | None = None) -> list[Reply | Fault]:
    """All answers, of which every reply counts as valid."""
    quota, answers = Quota(enough), []
    for answer in engine.run_clients(groups, quota):
        if isinstance(answer, Reply):
            quota.count()
        answers.append(answer)
    return answers


@given(st.lists(st.tuples(st.integers(0, 2**40), st.binary(max_size=53)), max_size=7, unique_by=lambda pair: pair[0]))
def test_messages_arrive_unchanged_and_in_order(group: list[tuple[int, bytes]]):
    job, found = unpack_request(pack_request(JOB, group))
    assert (job, found) == (JOB, group)
    replies, cost = unpack_reply(pack_reply(group, 1.5))
    assert replies == group
    assert cost == (1.5, 0, 0.0)  # a site keeps its process and its memory to itself
    _, cost = unpack_reply(pack_reply(group, 1.5, own=True))
    assert (cost.seconds, cost.process, cost.peak_rss_mib > 1) == (1.5, os.getpid(), True)


def test_every_client_gets_a_reply_and_each_group_takes_one_message():
    flowers, grid = engine()
    answers = run(flowers, [(0, b"abc"), (1, b"xyz")], [(4, b"q" * 70_000)])
    assert {(a.client_id, a.message) for a in answers if isinstance(a, Reply)} == {
        (0, b"cba"),
        (1, b"zyx"),
        (4, b"q" * 70_000),
    }
    assert [m.metadata.dst_node_id for m in grid.pushed] == [101, 109]
    assert {m.metadata.ttl for m in grid.pushed} == {60.0}
    assert all(a.seconds >= 0 for a in answers if isinstance(a, Reply))
    assert flowers.peak_rss_mib() > 1


def test_an_error_at_a_node_becomes_a_fault_that_reveals_no_data(caplog: pytest.LogCaptureFixture):
    flowers, _ = engine()
    answers = run(flowers, [(0, b"secret")], [(1, b"refuse")], [(2, b"abc")])
    assert sorted(answers, key=lambda a: a.client_id)[:2] == [
        Fault(0, "failed", "its training or evaluation failed (code training); the reason is in its own log"),
        Fault(1, "failed", "its training or evaluation failed (code training); the reason is in its own log"),
    ]
    assert [a.client_id for a in answers if isinstance(a, Reply)] == [2]
    assert "a private row of data" in caplog.text
    assert "raise memory_mib" in caplog.text


def test_a_failure_that_is_asked_for_again_is_logged_once(caplog: pytest.LogCaptureFixture):
    flowers, _ = engine()
    run(flowers, [(0, b"secret")])
    run(flowers, [(0, b"secret")])
    assert caplog.text.count("(code training)") == 1
    run(flowers, [(0, b"refuse")])
    run(flowers, [(0, b"secret")])
    assert caplog.text.count("(code training)") == 3


@pytest.mark.parametrize("kind", [InputError, ValueError])
def test_nobody_fills_a_nodes_log(kind: type[Exception], caplog: pytest.LogCaptureFixture):
    """Whoever asks chooses what fails and, with the recipe, many of the words."""
    now = [0.0]
    log = FailureLog(lambda: now[0])
    for number in range(MOST_FAILURES + 70):
        log.write("recipe", kind(f"{number} {'x' * 10**4} ends"))
    *found, last = [record.getMessage() for record in caplog.records]
    assert (len(found), last) == (MOST_FAILURES, "no more failures of this day are written")
    assert max(map(len, found)) < 1.1 * MOST_LOGGED
    assert all(words.rstrip().endswith("x ends") for words in found)
    now[0] += DAY_SECONDS + 1
    log.write("recipe", kind("the next day"))
    assert "the next day" in caplog.records[-1].getMessage()


def test_a_job_that_is_too_long_is_not_parsed():
    content = pack_query({"recipe": {"x" * MOST_JOB: 1}})
    with pytest.raises(ValueError, match="characters; at most 2,097,152 are read"):
        unpack_job(content)


def test_in_ones_own_simulation_the_words_are_shown():
    grid = FakeGrid(make_client_app(backwards, lambda job, context: {}, own=True))
    answers = run(FlowerEngine(cast(Grid, grid), NODES, JOB, 60.0, own=True), [(0, b"secret")], [(1, b"refuse")])
    assert answers == [
        Fault(0, "failed", "ValueError; the node's log has the rest"),
        Fault(1, "failed", "budget 'small' cannot hold one expert; raise memory_mib"),
    ]


def test_a_lost_node_and_an_undelivered_message_become_faults():
    flowers, _ = engine(lambda node: {101: "gone", 103: "refused"}.get(node, "well"))
    answers = run(flowers, [(0, b"a")], [(1, b"b")], [(2, b"c")])
    faults = {a.client_id: a for a in answers if isinstance(a, Fault)}
    assert faults[0] == Fault(0, "failed", "its node was restarted, or its message expired")
    assert faults[1].kind == "failed"
    assert faults.keys() == {0, 1}


def test_a_straggler_ends_at_the_deadline_and_its_answer_is_dropped_in_the_next_round(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(1000))
    monkeypatch.setattr(flower.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(flower.time, "sleep", lambda seconds: None)
    behaviour = {101: "lost", 103: "well"}
    flowers, _ = engine(lambda node: behaviour.get(node, "well"), seconds=5.0)
    first = run(flowers, [(0, b"ab")], [(1, b"cd")])
    assert [a for a in first if isinstance(a, Fault)] == [Fault(0, "late", "no answer within 5 s")]
    behaviour[101] = "slow"
    second = run(flowers, [(0, b"ef")], [(1, b"gh")])
    assert Fault(0, "stale", "its answer came after its round") in second
    assert {a.message for a in second if isinstance(a, Reply)} == {b"fe", b"hg"}
    third = run(flowers, [(0, b"ij")])
    assert [type(a) for a in third] == [Reply]  # a stale answer is reported once


def test_a_straggler_that_flower_gives_up_on_is_not_reported_as_stale(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(1000))
    monkeypatch.setattr(flower.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(flower.time, "sleep", lambda seconds: None)
    behaviour = {101: "lost"}
    flowers, _ = engine(lambda node: behaviour.get(node, "well"), seconds=5.0)
    assert [a.kind for a in run(flowers, [(0, b"ab")]) if isinstance(a, Fault)] == ["late"]
    behaviour[101] = "gone"
    assert [type(a) for a in run(flowers, [(1, b"cd")])] == [Reply]


def test_clients_beyond_enough_are_spare_and_a_repeated_answer_counts_once():
    flowers, _ = engine(lambda node: {101: "lost", 103: "twice"}.get(node, "well"))
    answers = run(flowers, [(0, b"ab")], [(1, b"cd")], [(2, b"ef")], [(4, b"gh")], enough=3)
    assert sorted(a.client_id for a in answers if isinstance(a, Reply)) == [1, 2, 4]
    assert [a for a in answers if isinstance(a, Fault)] == [Fault(0, "spare", "enough others had answered")]


def test_an_invalid_reply_takes_no_ones_place():
    """Two of four are wanted; two nodes answer at once with what screening rejects, and the honest two are slow."""
    flowers, _ = engine(lambda node: "well" if node in (101, 103) else "slow")
    quota, valid, spare = Quota(2), [], []
    for answer in flowers.run_clients([[(0, b"bad")], [(1, b"bad")], [(2, b"good")], [(4, b"good")]], quota):
        if isinstance(answer, Fault):
            spare.append(answer)
        elif answer.message == b"doog":
            valid.append(answer.client_id)
            quota.count()
    assert (sorted(valid), spare) == ([2, 4], [])


def test_an_answer_in_another_clients_name_is_refused():
    """Client 1's node sends an update in the name of client 0."""

    class Impostor:
        def __call__(self, message: Message, context: Any) -> Message:
            return Message(pack_reply([(0, b"poison")], 0.1), reply_to=message)

    grid = FakeGrid(cast(ClientApp, Impostor()))
    answers = run(FlowerEngine(cast(Grid, grid), NODES, JOB, 60.0), [(1, b"ab")])
    assert answers == [Fault(1, "failed", "its node answered for other clients than 1")]


def spoilt(**records: Any) -> RecordDict:
    """An answer for client 1 with other records."""
    content = pack_reply([(1, b"ab")], 0.1)
    for name, record in records.items():
        if record is None:
            del content[name]
        else:
            content[name] = record
    return content


def cost_record(**values: Any) -> ConfigRecord:
    return ConfigRecord({"seconds": 0.1, "process": 3, "peak_rss_mib": 7.0, **values})


INVALID: dict[str, RecordDict] = {
    "no updates": spoilt(clients=None),
    "no cost": spoilt(cost=None),
    "another kind of record": spoilt(cost=ArrayRecord({})),
    "no seconds": spoilt(cost=ConfigRecord({"process": 3})),
    "seconds that are text": spoilt(cost=cost_record(seconds="a")),
    "infinite seconds": spoilt(cost=cost_record(seconds=float("inf"))),
    "seconds that are no number": spoilt(cost=cost_record(seconds=float("nan"))),
    "negative seconds": spoilt(cost=cost_record(seconds=-1.0)),
    "memory out of range": spoilt(cost=cost_record(peak_rss_mib=1e300)),
    "a process that is a list": spoilt(cost=cost_record(process=[1, 2])),
    "a failure without a reason": spoilt(failure=ConfigRecord({})),
    "nothing": RecordDict(),
}


class Says:
    """A node that gives the same answer to every message."""

    def __init__(self, content: RecordDict) -> None:
        self._content = content

    def __call__(self, message: Message, context: Any) -> Message:
        return Message(self._content, reply_to=message)


@pytest.mark.parametrize("kind", INVALID)
def test_an_invalid_answer_is_a_fault_of_its_client(kind: str):
    grid = FakeGrid(cast(ClientApp, Says(INVALID[kind])))
    (fault,) = run(FlowerEngine(cast(Grid, grid), NODES, JOB, 60.0), [(1, b"ab")])
    assert fault[:2] == (1, "failed")
    assert re.fullmatch(r"its answer cannot be read \(\w+Error\)", cast(Fault, fault).reason)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10**5, '{"a": NaN}', '{"a": 1, "a": 2}', "null"])
def test_an_invalid_profile_is_reported(text: str):
    grid = FakeGrid(cast(ClientApp, Says(RecordDict({"profile": ConfigRecord({"json": text})}))))
    assert isinstance(ask(cast(Grid, grid), [101], JOB, 60.0)[101], Unreadable)
    assert str(ask(cast(Grid, grid), [101], JOB, 60.0)[101]).startswith("its answer cannot be read (")


def test_a_nodes_reason_is_shown_as_one_line_of_plain_text():
    """It cannot move the cursor, colour the terminal or fill a log."""
    wild = "\x1b[2J[/red]\r\n" + "a" * 10_000
    grid = FakeGrid(cast(ClientApp, Says(RecordDict({"failure": ConfigRecord({"code": wild, "reason": wild})}))))
    (fault,) = run(FlowerEngine(cast(Grid, grid), NODES, JOB, 60.0), [(1, b"ab")])
    assert fault == Fault(1, "failed", "it gave a reason that is not on the list; the reason is in its own log")
    (fault,) = run(FlowerEngine(cast(Grid, grid), NODES, JOB, 60.0, own=True), [(1, b"ab")])
    assert cast(Fault, fault).reason == " [2J[/red]  " + "a" * 488
    said = io.StringIO()
    Progress(Console(file=said)).say(f"site a cannot join: {cast(Fault, fault).reason}")
    assert "[/red]" in said.getvalue()


def test_a_client_is_absent_while_its_node_is_not_connected():
    flowers, grid = engine()
    assert flowers.absent() == set()
    grid.connected -= {103, 109}
    assert flowers.absent() == {1, 4}
    grid.connected.add(109)
    assert flowers.absent() == {1}


def test_nodes_answer_with_a_profile_or_a_reason():
    def profile(job: JobValues, context: object) -> dict[str, Any]:
        return {"tier": "small", "examples": 13, "labels": len(job["labels"])}

    grid = FakeGrid(make_client_app(backwards, profile), lambda node: "lost" if node == 107 else "well")
    found = ask(cast(Grid, grid), [101, 103], JOB, 60.0)
    expected = {"tier": "small", "examples": 13, "labels": 2}
    assert found == {101: expected, 103: expected}

    def refuse(job: JobValues, context: object) -> dict[str, Any]:
        raise InputError("this node has no train file")

    grid = FakeGrid(make_client_app(backwards, refuse))
    assert ask(cast(Grid, grid), [101], JOB, 60.0) == {
        101: "it failed unexpectedly (code internal); the reason is in its own log"
    }


def test_a_profile_is_json():
    app = make_client_app(backwards, lambda job, context: {"tier": "ü", "top_k": 2})
    grid = FakeGrid(app)
    [identity] = grid.push_messages([Message(pack_request(JOB, []), dst_node_id=101, message_type="query")])
    [answer] = grid.pull_messages([identity])
    assert unpack_profile(answer.content) == {"tier": "ü", "top_k": 2}
    assert json.dumps(JOB)
