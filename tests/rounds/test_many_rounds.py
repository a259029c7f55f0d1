"""A thousand rounds over nodes that drop out, straggle, repeat themselves and answer old questions, all by seed.

The engine is the one over Flower; the network under it and the clock are simulated.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fftmoe.engines import flower
from fftmoe.engines.flower import POLL_SECONDS, FlowerEngine
from fftmoe.engines.flower_messages import pack_reply, unpack_request
from fftmoe.methods.head_only import HeadOnly
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    ServerState,
    Training,
    made_on,
    pack_update,
    unpack_plan,
)
from fftmoe.rng import numpy_generator
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.cohort import choose_cohort, substitute
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import plan_round
from fftmoe.store import pack_state

CLIENTS, WANTED, SPARE, DEADLINE = 31, 10, 3, 60.0
AWAY = 0.05  # of the clients are not connected when a round begins
# What becomes of a message. Those that drop out never answer; half of them are given up by Flower within the round.
KINDS = {"drops out": 0.1, "straggles": 0.05, "repeats": 0.05, "answers an old question": 0.05, "answers": 0.75}
METHOD, BACKBONE = HeadOnly(), "0123456789abcdef"
TRAINING = Training(5, 0.1, 1.0, local_steps=1)


class Network:
    """Nodes with a simulated clock: what each does with a message follows from seed, round and client."""

    def __init__(self, seed: int) -> None:
        self.seed, self.now, self.round = seed, 0.0, 0
        self.sent: dict[str, Message] = {}
        self.due: list[tuple[float, str, Message]] = []  # when, an answer to which, and the answer
        self.old: dict[int, tuple[Message, bytes]] = {}  # the last question of each client, and its answer
        self.did: dict[tuple[int, int], str] = {}

    def get_node_ids(self) -> Iterable[int]:
        away = numpy_generator(self.seed, "away", self.round).random(CLIENTS) < AWAY
        return [100 + client for client in range(CLIENTS) if not away[client]]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._take(message) for message in messages]

    def _take(self, message: Message) -> str:
        name = f"m{len(self.sent)}"
        message.metadata.__dict__["_message_id"] = name
        self.sent[name] = message
        client = message.metadata.dst_node_id - 100
        rng = numpy_generator(self.seed, "node", client, self.round)
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        self.did[self.round, client] = kind
        [(_, request)] = unpack_request(message.content)[1]
        plan, _ = unpack_plan(request)
        answer = Message(pack_reply([(client, answer_of(plan))], 0.1), reply_to=message)
        soon = self.now + DEADLINE * float(rng.beta(1.5, 6))
        if kind == "drops out":
            if rng.random() < 0.5:
                self.due.append((soon, name, Message(Error(code=3, reason="gone"), reply_to=message)))
            return name
        if kind == "answers an old question" and client in self.old:
            question, update = self.old[client]
            self.due.append((soon, name, Message(pack_reply([(client, update)], 0.1), reply_to=question)))
        late = self.now + DEADLINE * float(rng.uniform(1.0, 3.0))
        self.due.append((late if kind == "straggles" else soon, name, answer))
        if kind == "repeats":
            again = Message(pack_reply([(client, answer_of(plan))], 0.1), reply_to=message)
            self.due.append((soon + float(rng.uniform(0, DEADLINE)), name, again))
        self.old[client] = (message, answer_of(plan))
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Everything that has arrived, whether it was requested or not."""
        arrived = [answer for when, _, answer in sorted(self.due, key=lambda d: d[:2]) if when <= self.now]
        self.due = [waiting for waiting in self.due if waiting[0] > self.now]
        return arrived

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        return self.now


def answer_of(plan: ClientPlan) -> bytes:
    """The update of a simulated client, a function of its plan."""
    delta = (plan.client_id + 1) * torch.tensor([1.0, float(np.exp(-plan.round / 100))])
    tensors = {"head.bias": delta, "head.weight": torch.zeros(2, 3)}
    name = made_on(BACKBONE, plan.base)
    return pack_update(ClientUpdate(plan.round, plan.client_id, 7, tensors, metrics={"loss": 1.0}, made_on=name))


def play(seed: int, rounds: int) -> Iterator[tuple[Network, int, list[ClientUpdate], Ledger, float, ServerState, bool]]:
    """Round by round: who was merged, what was noted, how long it took, the state after it and whether it was void."""
    network, ledger = Network(seed), Ledger()
    engine = FlowerEngine(cast(Grid, network), {c: 100 + c for c in range(CLIENTS)}, cast(Any, {}), DEADLINE)
    budgets = dict.fromkeys(range(CLIENTS), Budget("all", 1, 1, ()))
    expect = partial(Expectation.of, method=METHOD, backbone=BACKBONE, num_examples=7)
    state = ServerState(0, {"head.bias": torch.zeros(2), "head.weight": torch.zeros(2, 3)})
    with (
        mock.patch.object(flower.time, "sleep", network.sleep),
        mock.patch.object(flower.time, "monotonic", network.clock),
    ):
        for t in range(1, rounds + 1):
            network.round, began, taken = t, network.now, []
            drawn = choose_cohort(CLIENTS, WANTED + SPARE, seed, t)
            cohort = substitute(drawn, engine.absent(), CLIENTS, seed, t)
            plan = plan_round(METHOD, state, t, cohort, budgets, TRAINING, seed)
            updates = Exchange(engine, expect, ledger).updates(plan, partial(METHOD.download, state), WANTED)
            state, noted = apply_round(METHOD, state, plan, keep(updates, taken), quorum=WANTED)
            yield network, t, taken, ledger, network.now - began, state, "void" in noted


def keep(updates: Iterable[ClientUpdate], taken: list[ClientUpdate]) -> Iterator[ClientUpdate]:
    for update in updates:
        taken.append(update)
        yield update


@pytest.fixture(autouse=True)
def flower_identity() -> Iterator[None]:
    """Flower's messages want to know where they are made."""
    patches = [mock.patch.object(TaskIdentity, name, 1) for name in ("_run_id", "_node_id", "_task_id")]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


@pytest.mark.parametrize(
    ("seed", "rounds"), [(0, 100), *(pytest.param(seed, 1000, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_every_round_ends_by_its_deadline_with_one_update_of_a_client(seed: int, rounds: int):
    void, longest, before, kinds = 0, 0.0, None, set()
    counts: dict[str, int] = {}
    for network, t, taken, ledger, seconds, state, was_void in play(seed, rounds):
        longest, void = max(longest, seconds), void + was_void
        merged = [update.client_id for update in taken]
        assert merged == sorted(set(merged))
        assert all(update.round == t for update in taken)
        assert len(merged) <= WANTED + SPARE  # answers that come together are all taken
        kinds |= {network.did[t, client] for client in merged}
        assert not {network.did[t, client] for client in merged} & {"drops out", "straggles"}
        ended = [fault.client_id for fault in ledger.new_faults if fault.kind != "stale"]
        asked = [client for round, client in network.did if round == t]
        assert sorted([*ended, *merged]) == sorted(asked)  # each asked client ended once
        counts = dict(ledger.faults)
        ledger.row()
        if was_void:  # it counts as a round, and changes nothing
            assert before is not None
            assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.tensors.items())
        before = state
    assert longest <= DEADLINE + POLL_SECONDS
    assert kinds == {"repeats", "answers an old question", "answers"}
    assert counts["stale"] > rounds / 10
    # 13 are asked, 10 must answer, each does with probability 0.85: the binomial's tail, give or take 4 deviations.
    answers = 1 - KINDS["drops out"] - KINDS["straggles"]
    asked = WANTED + SPARE
    tail = sum(math.comb(asked, n) * answers**n * (1 - answers) ** (asked - n) for n in range(WANTED, asked + 1))
    assert abs((rounds - void) / rounds - tail) < 4 * math.sqrt(tail * (1 - tail) / rounds)
    print(f"seed {seed}: {void} void rounds of {rounds}, {1 - tail:.3f} expected; {counts}")


def test_the_same_seed_gives_the_same_rounds():
    def ends() -> bytes:
        *_, (*_, state, _) = play(7, 50)
        return pack_state(state)

    assert ends() == ends()
