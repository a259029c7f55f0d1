"""At most one update is accepted of a client in a round of a run, and only one made on what it was sent.

Nodes answer with whatever they have ever sent, under any name, to any message, any number of times. What is accepted
is checked against a set.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast
from unittest import mock

import pytest
import torch
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from fftmoe.engines import flower
from fftmoe.engines.base import Quota
from fftmoe.engines.flower import FlowerEngine
from fftmoe.engines.flower_messages import pack_reply
from fftmoe.methods.head_only import HeadOnly
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    ServerState,
    Training,
    digest,
    made_on,
    pack_update,
)
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import plan_round

CLIENTS = range(4)
BUDGETS = dict.fromkeys(CLIENTS, Budget("all", 1, 1, ()))
TRAINING = Training(5, 0.1, 1.0, local_steps=1)
METHOD, BACKBONE = HeadOnly(), "0123456789abcdef"
SECONDS = 9.0


def fresh(start: float) -> ServerState:
    return ServerState(0, {"head.bias": torch.tensor([start, 0.0]), "head.weight": torch.zeros(2, 3)})


def honest(plan: ClientPlan) -> bytes:
    """The client's answer, which is a function of the plan."""
    delta = (plan.client_id + 1) * torch.tensor([0.5**plan.round, int(plan.base[:4], 16) / 2**16])
    tensors = {"head.bias": delta, "head.weight": torch.zeros(2, 3)}
    return pack_update(
        ClientUpdate(
            plan.round, plan.client_id, 7, tensors, metrics={"loss": 1.0}, made_on=made_on(BACKBONE, plan.base)
        )
    )


@dataclass(frozen=True)
class Delivery:
    """A node's answer: to a message of this round or of any before it, with these clients' names on these updates."""

    reply_to: int  # of all messages ever, from the last
    content: tuple[tuple[int, int, int], ...]  # name on it, whose update, and which, from the last; none: an error
    times: int


class Liars:
    """A grid whose nodes deliver what a test chooses, in parts, one part at each look."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.updates: dict[int, list[bytes]] = {client: [] for client in CLIENTS}
        self.script: list[Delivery] = []

    def get_node_ids(self) -> Iterable[int]:
        return [100 + client for client in CLIENTS]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        new = list(messages)
        for number, message in enumerate(new, len(self.messages)):
            message.metadata.__dict__["_message_id"] = f"m{number}"
        self.messages += new
        return [message.metadata.message_id for message in new]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Not only answers to those: whatever it is."""
        if not self.script:
            return []
        delivery = self.script.pop(0)
        to = self.messages[-1 - delivery.reply_to % len(self.messages)]
        if not delivery.content:
            return [Message(Error(code=3, reason="gone"), reply_to=to)] * delivery.times
        group = [(name, self.update(whose, which)) for name, whose, which in delivery.content]
        return [Message(pack_reply(group, 0.1), reply_to=to)] * delivery.times

    def update(self, whose: int, which: int) -> bytes:
        own = self.updates[whose]
        return own[-1 - which % len(own)] if own else b""


clients, places = st.sampled_from(CLIENTS), st.integers(0, 3) | st.integers(0, 15)
own_updates = st.builds(lambda client, which: ((client, client, which),), clients, places)
any_updates = st.lists(st.tuples(clients, clients, places), max_size=2).map(tuple)
deliveries = st.builds(Delivery, places, own_updates | any_updates, st.integers(1, 2))


class Federations(RuleBasedStateMachine):
    """Runs one after another over the same nodes; rounds, and rounds played again."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [mock.patch.object(TaskIdentity, name, 1) for name in ("_run_id", "_node_id", "_task_id")]
        self.patches += [mock.patch.object(flower.time, "sleep")]
        self.now = 0.0
        self.patches += [mock.patch.object(flower.time, "monotonic", self.clock)]
        for patch in self.patches:
            patch.start()
        self.grid, self.run = Liars(), 0
        self.history, self.accepted = [fresh(0.0)], set()
        self.engine = FlowerEngine(cast(Grid, self.grid), {c: 100 + c for c in CLIENTS}, {}, SECONDS)

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    @rule(start=st.sampled_from([0.0, 1.0]))
    def another_run(self, start: float) -> None:
        """With the same nodes, which remember; perhaps from the same model."""
        self.run += 1
        self.history = [fresh(start)]
        self.engine = replace(self.engine)

    @rule(back=st.integers(1, 2))
    def resume(self, back: int) -> None:
        """The last rounds are lost, and so is what was accepted in them."""
        del self.history[max(1, len(self.history) - back) :]
        last = self.history[-1].round
        self.accepted = {known for known in self.accepted if known[0] != self.run or known[1] <= last}

    @rule(
        cohort=st.sets(st.sampled_from(CLIENTS), min_size=1),
        script=st.lists(deliveries, max_size=7),
        enough=st.none() | st.integers(1, 3),
    )
    def play(self, cohort: set[int], script: list[Delivery], enough: int | None) -> None:
        state = self.history[-1]
        plan = plan_round(METHOD, state, state.round + 1, sorted(cohort), BUDGETS, TRAINING, seed=3)
        mine = {client.client_id: honest(client) for client in plan.clients}
        for client_id, message in mine.items():
            self.grid.updates[client_id].append(message)
        self.grid.script = list(script)
        ledger, taken = Ledger(), []

        def kept(updates: Iterable[ClientUpdate]) -> Iterable[ClientUpdate]:
            for update in updates:
                taken.append(update)
                yield update

        expect = partial(Expectation.of, method=METHOD, backbone=BACKBONE, num_examples=7)
        download = partial(METHOD.download, state)
        updates = kept(Exchange(self.engine, expect, ledger).updates(plan, download, enough))
        self.history.append(apply_round(METHOD, state, plan, updates)[0])
        base = digest(state.tensors)
        for update in taken:
            name = (self.run, update.round, update.client_id, base)
            assert name not in self.accepted
            self.accepted.add(name)
            assert pack_update(update) == mine[update.client_id]
        assert [u.client_id for u in taken] == sorted({u.client_id for u in taken})
        ended = {fault.client_id for fault in ledger.new_faults if fault.kind != "stale"}
        assert ended | {u.client_id for u in taken} == cohort
        assert not ended & {u.client_id for u in taken}


@pytest.mark.parametrize(
    ("examples", "steps"), [(40, 50), pytest.param(1000, 50, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_no_update_is_accepted_twice_or_for_another_round(examples: int, steps: int):
    found = settings(max_examples=examples, stateful_step_count=steps, phases=[Phase.reuse, Phase.generate])
    run_state_machine_as_test(Federations, settings=found)


def test_a_second_answer_is_reported_and_changes_nothing():
    """The engine of this test delivers a second answer."""

    class Twice:
        def run_clients(self, groups: Any, quota: Quota) -> Any:
            for [(client_id, _)] in groups:
                first = flower.Reply(client_id, mine[client_id], 0.1)
                yield from (first, first._replace(message=b"poison"))
            yield flower.Reply(99, b"nobody asked", 0.1)

    state = fresh(0.0)
    plan = plan_round(METHOD, state, 1, CLIENTS, BUDGETS, TRAINING, seed=3)
    mine, ledger = {client.client_id: honest(client) for client in plan.clients}, Ledger()
    expect = partial(Expectation.of, method=METHOD, backbone=BACKBONE)
    updates = Exchange(cast(Any, Twice()), expect, ledger).updates(plan, partial(METHOD.download, state))
    assert [pack_update(update) for update in updates] == list(mine.values())
    assert ledger.faults == {"stale": 5}
    assert [fault.client_id for fault in ledger.new_faults] == [*CLIENTS, 99]
    assert ledger.bytes_up == sum(map(len, mine.values()))
