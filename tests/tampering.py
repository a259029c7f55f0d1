"""Recorded rounds, which tests repeat with some of the answers replaced."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from fftmoe.config import parse_recipe
from fftmoe.engines.base import Fault, Group, Quota, Reply
from fftmoe.records import RoundPlan, ServerState, Tensors, names, pack_plan
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_sums, solve_head
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_answers
from five_clients import AVERAGED, CLOSED, EVERY_METHOD, FOURIER, FROZEN, five_clients

OWN_ROUTERS = {"adapter.router": "shared+personal", "adapter.shared_rank": 1}
# Name -> method, head, task, and other settings of the recipe.
CELLS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    **{method: (method, AVERAGED, "train", {}) for method in EVERY_METHOD},
    "fft-moe-bfloat16": ("fft-moe", AVERAGED, "train", {"federation.upload": "bfloat16"}),
    "fft-moe-int8": ("fft-moe", AVERAGED, "train", {"federation.upload": "int8", **OWN_ROUTERS}),
    "fft-moe-own-routers": ("fft-moe", AVERAGED, "train", {"adapter.router": "personal"}),
    "fft-moe-solved-head": ("fft-moe", CLOSED, "train", {}),
    "flame-int8": ("flame", AVERAGED, "train", {"federation.upload": "int8"}),
    "flexlora-int8": ("flexlora", AVERAGED, "train", {"federation.upload": "int8"}),
    "head-only-solved-head": ("head-only", FROZEN, "train", {}),
    "fft-moe-sums": ("fft-moe", CLOSED, "sums", {}),
    "fedsa-lora-sums": ("fedsa-lora", CLOSED, "sums", {"federation.upload": "int8"}),
    "flora-sums": ("flora", FOURIER, "sums", {}),
    "fft-moe-sums-of-few": ("fft-moe", {**FOURIER, "num_features": 67}, "sums", {}),
    "fft-moe-validate": ("fft-moe", CLOSED, "validate", {"data.validation": 0.3}),
    **{f"{method}-alone": (method, AVERAGED, "alone", {}) for method in ("fedit", "flame", "local-only")},
    "fft-moe-alone": ("fft-moe", FROZEN, "alone", {"federation.upload": "int8"}),
}
COHORT = (0, 1, 3)


class Kept:
    """Keeps client states in memory."""

    def __init__(self) -> None:
        self.states: dict[int, dict[int, Tensors]] = defaultdict(dict)

    def load(self, client_id: int, before: int) -> Tensors:
        rounds = [t for t in self.states[client_id] if t < before]
        return self.states[client_id][max(rounds)] if rounds else {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        self.states[client_id][round] = state


class Playback:
    """An engine that delivers recorded answers in reverse order."""

    reliable = False

    def __init__(self, answers: Mapping[int, bytes | Fault]) -> None:
        self.answers = answers
        self.enough: list[int | None] = []

    def absent(self) -> tuple[int, ...]:
        return ()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        self.enough.append(None if quota is None else quota.missing)
        for group in reversed(groups):
            for client_id, _ in group:
                answer = self.answers[client_id]
                yield answer if isinstance(answer, Fault) else Reply(client_id, answer, 0.25)

    def close(self) -> None:
        """There is nothing to close."""

    def peak_rss_mib(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Recorded:
    """A round, the state before it, and the answer of each of its clients."""

    experiment: Experiment
    state: ServerState
    plan: RoundPlan
    replies: Mapping[int, bytes]

    @property
    def victim(self) -> int:
        """A client in the middle of the round."""
        return self.plan.clients[len(self.plan.clients) // 2].client_id

    def expectation(self, client_id: int, **changes: Any) -> Expectation:
        """The expectation of this client, with some attributes changed."""
        (client,) = (c for c in self.plan.clients if c.client_id == client_id)
        tensors = self.experiment.method.download(self.state, client)
        return replace(expectations(self.experiment)(client, tensors), **changes)

    def play(self, answers: Mapping[int, bytes | Fault]) -> tuple[ServerState, Ledger]:
        """Repeat the round with some answers replaced; return the state after it, and the ledger."""
        method, task, ledger = self.experiment.method, self.plan.clients[0].task, Ledger()
        exchange = Exchange(Playback({**self.replies, **answers}), expectations(self.experiment), ledger)
        updates = exchange.updates(self.plan, partial(method.download, self.state))
        if task == "sums":
            return solve_head(self.state, updates, answers=make_answers(self.experiment.recipe)), ledger
        if task == "validate":
            sums = sum(update.tensors[names.VALIDATION] for update in updates)
            return replace(self.state, optimizer={"sums": torch.as_tensor(sums)}), ledger
        if task == "train":
            return apply_round(method, self.state, self.plan, updates)[0], ledger
        # Local training changes no server state; its metrics are put into the state so that a change is seen.
        measured = torch.tensor([update.metrics["holdout_accuracy"] for update in updates])
        return replace(self.state, optimizer={"measured": measured}), ledger


def recipe_of(cell: str, recipe_values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe of five clients in two tiers, of which the small one adapts only the last block; cohorts of three."""
    method, head, _, own = CELLS[cell]
    return five_clients(recipe_values, method, head, **{**own, **changes})


def record(recipe: dict[str, Any], task: str, rounds: int = 3) -> Recorded:
    """Record the last of `rounds` rounds of this recipe, with this task; the rounds before it train."""
    experiment = compose(parse_recipe(recipe, "tiny"))
    handler = build_client(client_spec(experiment, Kept()), experiment.model)
    cohort = [c for c in COHORT if c < experiment.num_clients]
    method, training, seed = experiment.method, experiment.training, experiment.recipe.seed

    def answered(state: ServerState, task: str) -> Recorded:
        if task in ("sums", "validate"):
            plan = plan_sums(state, cohort, experiment.largest, training, seed, task)
        else:
            plan = plan_round(method, state, state.round + 1, cohort, experiment.budgets, training, seed, task)
        messages = {client.client_id: pack_plan(client, method.download(state, client)) for client in plan.clients}
        return Recorded(experiment, state, plan, {c: handler([message])[0] for c, message in messages.items()})

    state = method.init(experiment.model)
    for _ in range(rounds - 1):
        state, counted = answered(state, "train").play({})
        assert not counted.faults, "honest clients"
    return answered(state, task)
