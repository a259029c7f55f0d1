"""A site carries out only what it agreed to, whatever its server sends."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fftmoe.client.screening import NUMBER_LIMIT, Agreement, screen_plan
from fftmoe.errors import InputError
from fftmoe.records import Schedule, Tensors, pack, pack_plan, unpack, unpack_plan
from fftmoe.setup.model import build_model
from fftmoe.setup.site import make_agreement
from spoiling import DEEP, INF, NAN, container, of, put_together, say, text
from tampering import CELLS, Recorded, recipe_of, record

ASKED = [cell for cell, (method, _, task, _) in CELLS.items() if task != "alone" and method != "centralized"]
Opened = Callable[[str], tuple[Recorded, Agreement]]


@pytest.fixture(scope="module")
def opened(recipe_values: dict[str, Any]) -> Opened:
    """`opened("fedit")`: the second round of this cell, and what the client in its middle agreed to."""
    done: dict[str, tuple[Recorded, Agreement]] = {}

    def make(cell: str) -> tuple[Recorded, Agreement]:
        if cell not in done:
            known = record(recipe_of(cell, recipe_values), CELLS[cell][2], rounds=2)
            experiment = known.experiment
            model = build_model(experiment.recipe, experiment.label_names)
            tier = experiment.budgets[known.victim].name
            done[cell] = known, make_agreement(experiment.recipe, model, known.victim, tier)
        return done[cell]

    return make


def message(known: Recorded, client_id: int) -> bytes:
    plan = next(plan for plan in known.plan.clients if plan.client_id == client_id)
    return pack_plan(plan, known.experiment.method.download(known.state, plan))


@pytest.mark.parametrize("cell", ASKED)
def test_a_plan_of_an_honest_server_is_carried_out(opened: Opened, cell: str):
    known, agreed = opened(cell)
    for client_id in known.replies:
        tier = known.experiment.budgets[client_id].name
        screen_plan(message(known, client_id), replace(agreed, client_id=client_id, tier=tier))


def table(name: str, **changes: Any) -> Any:
    return of(lambda header, tensors: header[name].update(changes))


def experts(change: Callable[[list[int]], object]) -> Any:
    def spoil(header: dict[str, Any], tensors: Tensors) -> object:
        block = max(header["experts"], default=None)
        return False if block is None else header["experts"].update({block: change(header["experts"][block])})

    return of(spoil)


def tensor(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return of(lambda header, tensors: tensors.update({min(tensors): change(tensors[min(tensors)])}))


def empty(header: dict[str, Any], tensors: Tensors) -> None:
    """No bytes, and a dimension that something might be made of."""
    tensors[min(tensors)] = torch.empty(0, 2**40)


TYPES = r"it must have exactly the fields \["
TRAINING = r"the server asks for the training settings .*; this site agreed to those of the recipe"
BUDGET, EXPERTS = r"the server asks for the budget .*, but ", r"the server's plan lists these experts "
KINDS: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "empty": (lambda m: b"", r"cannot be read: it has 0 bytes"),
    "cut": (lambda m: m[:40], r"cannot be read: it has 40 bytes"),
    "long header": (
        lambda m: put_together(" " * (2**22 + 1), b""),
        r"cannot be read: it has a header of 4,194,305 bytes",
    ),
    "endless header": (lambda m: b"\xff" * 8 + m, r"cannot be read: .* says that [\d,]+ of them are a header"),
    "deep": (text(lambda _: DEEP), r"cannot be read: its JSON is nested 50 deep"),
    "not a number": (text(lambda s: re.sub(r'"round":\d+', '"round":NaN', s)), r"NaN, which is not a number"),
    "a field more": (say(code="import os"), TYPES),
    "a field less": (of(lambda h, t: h.pop("task")), TYPES),
    "client is true": (say(client_id=True), TYPES),
    "another client": (
        of(lambda h, t: h.update(client_id=h["client_id"] + 1)),
        r"the server's plan is for client \d; this site is client \d",
    ),
    "trains locally": (
        say(task="alone"),
        r"the server asks for the task 'alone'; for this recipe this site carries out train",
    ),
    "unknown task": (say(task="__init__"), r"the server asks for the task '__init__'"),
    "round below zero": (say(round=-1), r"plan has round -1; the recipe has 2 rounds"),
    "a round more": (say(round=3), r"plan has round 3; the recipe has 2 rounds"),
    "huge seed": (say(seed=NUMBER_LIMIT), r"plan has seed 9223372036854775808; it must be at least 0 and below 2\^63"),
    "endless seed": (say(seed=10**999), r"plan has seed 10+\.\.\.0+; "),
    "seed below zero": (say(seed=-1), r"plan has seed -1"),
    "endless training": (table("training", local_steps=10**12), TRAINING),
    "an epoch more": (table("training", local_epochs=1, local_steps=None), TRAINING),
    "another rate": (table("training", learning_rate=1e9), TRAINING),
    "another optimizer": (table("training", head_optimizer="__init__"), TRAINING),
    "another upload": (table("training", upload="float64"), TRAINING),
    "not private": (of(lambda h, t: h["training"].update(private=not h["training"]["private"])), TRAINING),
    "training without a field": (of(lambda h, t: h["training"].pop("upload")), TRAINING),
    "budget is a list": (say(budget=[]), TYPES),
    "budget of more": (table("budget", device="cuda"), TYPES),
    "budget without a field": (of(lambda h, t: h["budget"].pop("rank")), TYPES),
    "another tier": (
        of(lambda h, t: h["budget"].update(name="other") if h["task"] == "train" else False),
        BUDGET + "the tier of this site is",
    ),
    "more experts than there are": (table("budget", experts=10**12), BUDGET + "1 <= top_k <= experts <= "),
    "more top_k than experts": (of(lambda h, t: h["budget"].update(top_k=h["budget"]["experts"] + 1)), BUDGET),
    "top_k zero": (table("budget", top_k=0), BUDGET + "1 <= top_k <= experts <= "),
    "huge rank": (table("budget", rank=10**12), BUDGET + "the recipe's method gives this tier other limits"),
    "unknown block": (of(lambda h, t: h["budget"]["blocks"].append(97)), BUDGET + "the recipe adapts the blocks"),
    "block twice": (
        of(lambda h, t: h["budget"]["blocks"].append(h["budget"]["blocks"][-1])),
        BUDGET + "its blocks must be integers",
    ),
    "block is true": (table("budget", blocks=[True]), BUDGET + "its blocks must be integers"),
    "foreign expert": (experts(lambda ids: [*ids[:-1], 99]), EXPERTS),
    "negative expert": (experts(lambda ids: [-1, *ids[1:]]), EXPERTS),
    "expert twice": (experts(lambda ids: [ids[0], *ids[:-1]]), EXPERTS),
    "too many experts": (
        of(
            lambda h, t: (
                h["experts"].update({max(h["experts"]): [*range(h["budget"]["experts"] + 1)]})
                if h["experts"] and h["task"] == "train"
                else False
            )
        ),
        EXPERTS,
    ),
    "experts are text": (experts(lambda ids: "0123"), EXPERTS),
    "experts of another block": (
        say(experts={"97": [0]}),
        r"the server's plan has experts for blocks \['97'\], not for \[",
    ),
    "experts are a list": (say(experts=[]), TYPES),
    "other numbers": (
        tensor(lambda t: t.double()),
        r"the server's tensor .*; expected float32 with at most 3 dimensions",
    ),
    "whole numbers": (tensor(lambda t: t.to(torch.int64)), r"the server's tensor "),
    "long tensor": (of(lambda h, t: t.update({"a": torch.zeros(10**4)})), r"the server's tensor 'a' "),
    "empty and long tensor": (of(empty), r"the server's tensor .*\[0, 1099511627776\]"),
    "deep tensor": (tensor(lambda t: t[None, None, None]), r"the server's tensor "),
    "tensor is a number": (container(lambda outer: outer.update({max(outer): 3})), r"the server's tensor "),
    "size below zero": (
        container(lambda outer: outer[max(outer)].update(shape=[-1])),
        r"the server's tensor ",
    ),
    "size is true": (container(lambda outer: outer[max(outer)].update(shape=[True])), r"the server's tensor "),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_a_dishonest_server_is_refused(opened: Opened, kind: str):
    spoil, reason = KINDS[kind]
    spoilt = 0
    for cell in ("fft-moe", "fft-moe-sums", "hetlora", "flora", "flame", "head-only"):
        known, agreed = opened(cell)
        bad = spoil(message(known, known.victim))
        if bad is None:
            continue
        spoilt += 1
        with pytest.raises(InputError, match=reason) as refused:
            screen_plan(bad, agreed)
        assert len(str(refused.value)) < 1500
    assert spoilt


@pytest.mark.parametrize("cell", ASKED)
def test_feature_statistics_are_sent_only_for_a_recipe_that_computes_its_head_from_them(opened: Opened, cell: str):
    """They are exact: without that rule a server could ask a private site for them."""
    known, agreed = opened(cell)
    plan = replace(next(p for p in known.plan.clients if p.client_id == known.victim), task="sums")
    asked = pack_plan(plan, known.experiment.method.download(known.state, plan))
    if known.experiment.recipe.closed_form:
        screen_plan(asked, agreed)
    else:
        with pytest.raises(InputError, match=r"the task 'sums'; for this recipe this site carries out train$"):
            screen_plan(asked, agreed)


def test_a_site_computes_the_learning_rates_of_a_round_itself(opened: Opened):
    known, agreed = opened("fft-moe")
    falling = replace(agreed, schedule=Schedule("cosine", warmup=1, rounds=2))
    plan = next(plan for plan in known.plan.clients if plan.client_id == known.victim)
    tensors = known.experiment.method.download(known.state, plan)
    for round in (1, 2):
        own = falling.schedule.at(plan.training, round)
        screen_plan(pack_plan(replace(plan, round=round, training=own), tensors), falling)
    with pytest.raises(InputError, match=TRAINING):
        screen_plan(pack_plan(replace(plan, round=1), tensors), falling)


def test_tensors_may_hold_any_numbers_because_training_checks_the_loss(opened: Opened):
    known, agreed = opened("fft-moe")
    header, tensors = unpack(message(known, known.victim))
    for wild in (NAN, INF, 1e30):
        screen_plan(pack(header, {name: torch.full_like(t, wild) for name, t in tensors.items()}), agreed)
    assert unpack_plan(message(known, known.victim))[0].training == agreed.training
