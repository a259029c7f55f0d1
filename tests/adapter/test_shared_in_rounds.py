"""What is shared between all experts of a block, in a federation: who holds it, sends it and averages it.

The same laws hold for the low-rank update of query and value, for that of all linear layers, and for the shared expert.
Sizes: M experts of H hidden units, R the rank of an update, S hidden units of a shared expert; HIDDEN is the tiny
models' dim.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from federation import exchange, plan_client
from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.records import ClientPlan, ClientUpdate, ServerState, Tensors, pack_update
from fftmoe.rng import generator, numpy_generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import HIDDEN
from shared_updates import BLOCKS, BUDGETS, TRAINING, randomise

M, H, R, S = 5, 3, 2, 2
ATTENTION = {"key": (HIDDEN, HIDDEN), "query": (HIDDEN, HIDDEN), "value": (HIDDEN, HIDDEN)}
LINEAR = {
    **ATTENTION,
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (HIDDEN, 24),
    "output.dense": (24, HIDDEN),
}


class Kind:
    """One kind of shared part: how it is switched on, and the shapes of its tensors in a block."""

    def __init__(self, options: dict[str, Any], shapes: dict[str, tuple[int, int]]) -> None:
        self.options = options
        self.shapes = {f"shared.{block}.{name}": shape for block in BLOCKS for name, shape in shapes.items()}
        self.names = set(self.shapes)
        size = sum(np.prod(shape) for shape in shapes.values())
        self.shape = (
            ExpertShape(HIDDEN, H, options["shared_dim"])
            if "shared_dim" in options
            else ExpertShape(HIDDEN, H, projections=int(size))
        )

    def held(self, client_id: int) -> set[str]:
        return {name for name in self.names if int(name.split(".")[1]) in BUDGETS[client_id].blocks}

    def method(self, **fields: Any) -> FftMoe:
        return FftMoe(budgets=BUDGETS, shape=self.shape, num_experts=M, **fields)


def factors(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The shapes of A and B of each layer (from, to)."""
    return {f"{name}.a": (R, d_in) for name, (d_in, _) in layers.items()} | {
        f"{name}.b": (d_out, R) for name, (_, d_out) in layers.items()
    }


KINDS = {
    "query and value": Kind({"shared_rank": R}, factors({name: ATTENTION[name] for name in ("query", "value")})),
    "all linear layers": Kind({"shared_rank": R, "shared_targets": "all-linear"}, factors(LINEAR)),
    "expert": Kind({"shared_dim": S}, {"up": (S, HIDDEN), "down": (S, HIDDEN)}),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def tiny_model(folder: Path, **options: Any) -> Any:
    """A tiny BERT whose experts and shared parts have been trained a little, so that everything has a gradient."""
    values: dict[str, Any] = {"num_experts": M, "expert_dim": H, "top_k": 1, "blocks": "last-2", **options}
    model = attach_adapter(load_backbone(str(folder), num_labels=3, seed=0), MoeAdapterConfig(**values))
    randomise(model)
    for block, moe in adapter.blocks(model).items():
        if moe.shared_down is not None:
            nn.init.normal_(moe.shared_down, std=0.1, generator=generator(block, "shared"))
    return model


@pytest.fixture
def model(backbone_folder: Path, kind: Kind) -> Any:
    return tiny_model(backbone_folder, **kind.options)


def parts(model: Any) -> dict[str, nn.Parameter]:
    """The shared parts in a model, by their names in the state."""
    found = dict(adapter.shared_projections(model))
    for block, moe in adapter.blocks(model).items():
        if moe.shared_up is not None and moe.shared_down is not None:
            found |= {f"shared.{block}.up": moe.shared_up, f"shared.{block}.down": moe.shared_down}
    return found


def plan_of(moe: FftMoe | LocalOnly, state: ServerState, client_id: int) -> ClientPlan:
    return plan_client(moe, state, client_id, BUDGETS, TRAINING)


def train(
    model: Any, moe: FftMoe | LocalOnly, state: ServerState, client_id: int, kept: Tensors | None = None
) -> tuple[ClientUpdate, Tensors]:
    return exchange(model, moe, state, plan_of(moe, state, client_id), kept)


def shared(names: Any) -> set[str]:
    return {name for name in names if name.startswith("shared.")}


def test_the_state_holds_the_part_of_every_block_and_none_without(kind: Kind, model: Any, backbone_folder: Path):
    state, without = kind.method().init(model), kind.method().init(tiny_model(backbone_folder))
    assert shared(state.tensors) == kind.names
    assert {name: tuple(state.tensors[name].shape) for name in kind.names} == kind.shapes
    assert set(state.tensors) - set(without.tensors) == kind.names
    assert set(state.load) == set(without.load)
    for name, parameter in parts(model).items():
        assert torch.equal(state.tensors[name], parameter)
        assert state.tensors[name].data_ptr() != parameter.data_ptr()


@pytest.mark.parametrize("client_id", BUDGETS)
def test_a_client_downloads_trains_and_sends_only_the_part_of_its_own_blocks(kind: Kind, model: Any, client_id: int):
    moe, own = kind.method(), kind.held(client_id)
    state = moe.init(model)
    plan = plan_of(moe, state, client_id)
    downloaded = moe.download(state, plan)
    assert shared(downloaded) == own
    for name in own:
        assert torch.equal(downloaded[name], state.tensors[name])  # whole, whatever the budget
    with moe.session(model, plan, downloaded, {}) as session:
        assert shared(session.parameters) == own
        trained_here = sum(p.numel() for name, p in session.parameters.items() if not name.startswith("head."))
        assert trained_here == moe.parameters(BUDGETS[client_id])
        for block, experts in adapter.blocks(model).items():
            if experts.shared_up is not None:
                assert experts.shared_up.shape[0] == (S if block in BUDGETS[client_id].blocks else 0)
    update, kept = train(model, moe, state, client_id)
    assert shared(update.tensors) == own
    for name in own:
        assert update.tensors[name].shape == state.tensors[name].shape
        assert update.tensors[name].any()
    assert not shared(kept)
    widest = moe.widest_update(plan, downloaded)
    assert shared(widest.tensors) == own
    assert len(pack_update(update)) <= len(pack_update(widest))


def test_what_another_client_left_in_the_model_changes_nothing(kind: Kind, model: Any):
    moe = kind.method()
    state = moe.init(model)
    first, _ = train(model, moe, state, 3)
    train(model, moe, state, 1)
    again, _ = train(model, moe, state, 3)
    assert set(first.tensors) == set(again.tensors)
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("aggregation", ["per-expert", "fedavg"])
@pytest.mark.parametrize("name", KINDS)
@given(seed=st.integers(0, 2**31), power=st.sampled_from([0.0, 2.0]))
@settings(max_examples=10)
def test_the_part_is_averaged_by_examples_over_the_clients_that_hold_the_block(
    name: str, aggregation: str, seed: int, power: float
):
    """The weights of routed experts do not matter. The paper's formula also counts clients without the block."""
    kind = KINDS[name]
    moe = kind.method(merge=partial(WeightedSum, kind=aggregation, activation_power=power))
    source, random = generator(seed, "deltas"), numpy_generator(seed, "sizes")
    shapes: dict[str, tuple[int, ...]] = {name: kind.shapes[name] for name in sorted(kind.names)}
    shapes |= {f"blocks.{b}.{part}": (M, H, HIDDEN) for b in BLOCKS for part in ("up", "down")}
    shapes |= {f"blocks.{b}.router": (M, HIDDEN) for b in BLOCKS} | {"head.weight": (3, HIDDEN)}
    tensors = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    load = {f"blocks.{block}": torch.full((M,), 1 / M, dtype=torch.float64) for block in BLOCKS}
    state = ServerState(0, tensors, load=load)
    plan = plan_round(moe, state, 1, list(BUDGETS), BUDGETS, TRAINING, seed=5)
    updates = []
    for client in plan.clients:
        widest = moe.widest_update(client, moe.download(state, client))
        shares = {block: tuple(random.dirichlet([1.0] * len(ids)).tolist()) for block, ids in client.experts.items()}
        deltas = {name: torch.randn(t.shape, generator=source) for name, t in widest.tensors.items()}
        size = int(random.integers(1, 1000))
        updates.append(dataclasses.replace(widest, tensors=deltas, shares=shares, num_examples=size))
    new, _ = apply_round(moe, state, plan, updates)
    for name in kind.names:
        holders = [u for u in updates if name in u.tensors]
        assert [u.client_id for u in holders] == ([0, 1, 2] if ".1." in name else [0, 1, 2, 3])
        weights = np.array([u.num_examples for u in holders], dtype=float)
        total = weights.sum() if aggregation == "per-expert" else sum(u.num_examples for u in updates)
        mean = np.tensordot(weights / total, [u.tensors[name].double().numpy() for u in holders], 1)
        np.testing.assert_allclose(new.tensors[name], tensors[name].double().numpy() + mean, rtol=1e-6, atol=1e-6)


def test_a_round_without_a_client_of_the_block_changes_nothing_in_it(kind: Kind, model: Any):
    moe = kind.method()
    state = moe.init(model)
    plan = plan_round(moe, state, 1, [3], BUDGETS, TRAINING, seed=5)
    new, _ = apply_round(moe, state, plan, [train(model, moe, state, 3)[0]])
    for name in kind.names:
        assert torch.equal(new.tensors[name], state.tensors[name]) is (".1." in name)


def test_in_local_training_a_client_keeps_its_own_part(kind: Kind, model: Any):
    local = LocalOnly(kind.method())
    state = local.init(model)
    update, kept = train(model, local, state, 0)
    assert not update.tensors
    assert set(kept) >= kind.names
    assert all(not torch.equal(kept[name], state.tensors[name]) for name in kind.names)
    _, again = train(model, local, state, 0, kept)
    assert all(not torch.equal(kept[name], again[name]) for name in kind.names)
    plan = plan_of(local, state, 0)
    local.personalize(model, local.download(state, plan), plan, again)
    assert all(torch.equal(parameter, again[name]) for name, parameter in parts(model).items())
    assert parts(model).keys() == kind.names
