"""FLAME, head only and local only, on a tiny BERT."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation import count_choices, examples, exchange, plan_client, tiny_moe
from fftmoe import adapter
from fftmoe.backbones import attach_adapter, head_parameters, load_backbone, logits
from fftmoe.backbones.lora import lora_config, lora_modules
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import token_mask
from fftmoe.data import training_batches
from fftmoe.errors import InputError
from fftmoe.head import make_head
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import Method
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flame import Flame
from fftmoe.methods.flora import FLora
from fftmoe.methods.head_only import HeadOnly
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    ServerState,
    Tensors,
    Training,
    pack_update,
)
from fftmoe.records.names import expert_tensor
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import HIDDEN

M, H = 5, 3
BLOCKS = (1, 2)
SMALL, LARGE = Budget("small", 1, 2, BLOCKS, rank=2), Budget("large", 3, 5, BLOCKS, rank=3)
NARROW = Budget("narrow", 2, 3, (2,), rank=3)
BUDGETS = {0: SMALL, 1: LARGE, 2: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.02, head_learning_rate=0.5, local_steps=3)
SHAPE = ExpertShape(HIDDEN, H)


@pytest.fixture
def moe_model(backbone_folder: Path) -> Any:
    return tiny_moe(backbone_folder, num_experts=M, expert_dim=H, top_k=1, blocks="last-2")


@pytest.fixture
def lora_model(backbone_folder: Path) -> Any:
    config = lora_config(1, 2.5, ["query", "intermediate.dense"], BLOCKS)
    return attach_adapter(load_backbone(str(backbone_folder), num_labels=3), config)


def flame(**fields: Any) -> Flame:
    return Flame(budgets=BUDGETS, shape=SHAPE, num_experts=M, **fields)


def plan_of(method: Method, state: ServerState, client_id: int, **changes: Any) -> ClientPlan:
    return plan_client(method, state, client_id, BUDGETS, dataclasses.replace(TRAINING, **changes))


def train(
    model: Any, method: Method, state: ServerState, client_id: int, client_state: Tensors | None = None, **changes: Any
) -> tuple[ClientUpdate, Tensors]:
    return exchange(model, method, state, plan_of(method, state, client_id, **changes), client_state)


def answers(model: Any) -> torch.Tensor:
    return logits(model, examples().batch(range(5))).detach()


# FLAME


def test_every_flame_client_holds_all_experts_and_uses_its_own_number(moe_model: Any):
    method = flame()
    state = method.init(moe_model)
    everything = tuple(range(M))
    assert method.assign(state, [0, 2]) == {0: {1: everything, 2: everything}, 2: {2: everything}}
    assert [method.parameters(b) for b in (SMALL, NARROW)] == [2 * (M * SHAPE.parameters + 1), M * SHAPE.parameters + 1]
    for client_id, budget in BUDGETS.items():
        plan = plan_of(method, state, client_id)
        with method.session(moe_model, plan, method.download(state, plan), {}) as session:
            trained = [p.numel() for name, p in session.parameters.items() if not name.startswith("head.")]
            assert sum(trained) == method.parameters(budget)
            assert adapter.blocks(moe_model)[2].top_k == budget.top_k


def test_flame_weighs_an_expert_by_its_activations_per_step_and_the_clients_examples(moe_model: Any):
    method = flame()
    state = method.init(moe_model)
    plan = plan_round(method, state, 1, [0, 1], BUDGETS, TRAINING, seed=5)
    updates = [train(moe_model, method, state, c)[0] for c in (0, 1)]
    updates[1] = dataclasses.replace(updates[1], num_examples=61)
    new, _ = apply_round(method, state, plan, updates)
    activations = {
        u.client_id: count_choices(moe_model, method, state, plan_of(method, state, u.client_id)) for u in updates
    }
    for block in BLOCKS:
        for m in range(M):
            total, weights = 0.0, 0.0
            for update in updates:
                if m not in update.experts[block]:
                    continue
                row = update.experts[block].index(m)
                f = activations[update.client_id][block][m] / TRAINING.local_steps  # type: ignore[operator]
                assert update.shares[block][row] == pytest.approx(f, rel=1e-5)
                total += f * update.num_examples * update.tensors[f"blocks.{block}.up"][row].double()
                weights += f * update.num_examples
            if weights:
                expected = state.tensors[f"blocks.{block}.up"][m].double() + total / weights
                torch.testing.assert_close(
                    new.tensors[f"blocks.{block}.up"][m].double(), expected, rtol=1e-5, atol=1e-6
                )
    assert new.preferences == {0: {}, 1: {}}


def test_a_flame_client_learns_its_scale_and_keeps_it(moe_model: Any):
    method = flame()
    state = method.init(moe_model)
    update, kept = train(moe_model, method, state, 1)
    scales = [expert_tensor(block, "scale") for block in BLOCKS]
    assert not any("scale" in name for name in update.tensors)
    assert all(kept[name] != 1.0 for name in scales)
    _, again = train(moe_model, method, state, 1, kept)
    assert all(again[name] != kept[name] for name in scales)
    plan = plan_of(method, state, 1)
    with method.session(moe_model, plan, method.download(state, plan), kept) as session:
        assert all(torch.equal(session.parameters[name].detach(), kept[name]) for name in scales)


def test_flames_scale_multiplies_what_the_block_adds_and_starts_at_one(moe_model: Any):
    """A session with scales gives what a session without them gives on experts times the scale."""
    method = flame()
    state = method.init(moe_model)
    plan = plan_of(method, state, 1)
    kept = {expert_tensor(1, "scale"): torch.tensor([0.5]), expert_tensor(2, "scale"): torch.tensor([-3.0])}
    by_hand = {**state.tensors}
    for block in BLOCKS:
        by_hand[f"blocks.{block}.down"] = kept[expert_tensor(block, "scale")] * by_hand[f"blocks.{block}.down"]
    method.install(moe_model, state.tensors, LARGE)
    plain = answers(moe_model)
    method.install(moe_model, by_hand, LARGE)
    scaled = answers(moe_model)
    assert not torch.allclose(plain, scaled)
    with method.session(moe_model, plan, method.download(state, plan), {}):
        torch.testing.assert_close(answers(moe_model), plain)
    with method.session(moe_model, plan, method.download(state, plan), kept):
        torch.testing.assert_close(answers(moe_model), scaled)
    torch.testing.assert_close(answers(moe_model), plain)  # no hook is left behind
    method.personalize(moe_model, method.download(state, plan), plan, kept)
    torch.testing.assert_close(answers(moe_model), scaled)
    assert torch.equal(state.tensors["blocks.1.down"], method.init(moe_model).tensors["blocks.1.down"] / 0.5)


def test_flame_with_power_zero_averages_as_fft_moe_by_examples(moe_model: Any):
    zero, one = flame(merge=WeightedSum), FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M)
    state = zero.init(moe_model)
    updates = [train(moe_model, zero, state, c)[0] for c in (0, 1)]
    plan = plan_round(zero, state, 1, [0, 1], BUDGETS, TRAINING, seed=5)
    new_zero, new_one = (apply_round(m, state, plan, updates)[0] for m in (zero, one))
    assert all(torch.equal(new_one.tensors[name], t) for name, t in new_zero.tensors.items())


@pytest.mark.parametrize("client_id", sorted(BUDGETS))
def test_a_flame_clients_own_model_is_the_one_it_would_train_on(moe_model: Any, client_id: int):
    method = flame()
    state = method.init(moe_model)
    plan = plan_round(method, state, 1, [client_id], BUDGETS, TRAINING, seed=5)
    update, kept = train(moe_model, method, state, client_id)
    new, _ = apply_round(method, state, plan, [update])
    download = method.download(new, plan.clients[0])
    with method.session(moe_model, plan.clients[0], download, kept):
        trained = answers(moe_model)
    method.install(moe_model, state.tensors, LARGE)
    method.personalize(moe_model, download, plan.clients[0], kept)
    torch.testing.assert_close(answers(moe_model), trained)


# Head only


def adapted(kind: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{kind}_model")


@pytest.mark.parametrize("kind", ["moe", "lora"])
def test_head_only_trains_and_sends_the_head_whatever_is_attached(kind: str, request: pytest.FixtureRequest):
    model, method = adapted(kind, request), HeadOnly()
    state = method.init(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert set(state.tensors) == {"head.weight", "head.bias"}
    updates = [train(model, method, state, c)[0] for c in BUDGETS]
    updates[1] = dataclasses.replace(updates[1], num_examples=100)
    plan = plan_round(method, state, 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
    new, diagnostics = apply_round(method, state, plan, iter(updates))
    mean = (23 * updates[0].tensors["head.weight"] + 100 * updates[1].tensors["head.weight"]) / 146
    mean += 23 * updates[2].tensors["head.weight"] / 146
    torch.testing.assert_close(new.tensors["head.weight"], state.tensors["head.weight"] + mean)
    assert diagnostics == {"train_loss": pytest.approx(np.mean([u.metrics["loss"] for u in updates]))}
    now = dict(model.named_parameters())
    assert {n for n, p in before.items() if not torch.equal(p, now[n])} == {n for n in now if "modules_to_save" in n}
    method.install(model, new.tensors, SMALL)
    assert torch.equal(head_parameters(model)["weight"].detach(), new.tensors["head.weight"])
    installed = answers(model)
    method.personalize(model, method.download(new, plan_of(method, new, 2)), plan_of(method, new, 2), {})
    assert torch.equal(answers(model), installed)
    assert not method.capabilities.personal
    assert method.parameters(LARGE) == 0
    assert all(not experts for experts in method.assign(state, [0, 1]).values())


def test_head_only_forecasts_the_head(lora_model: Any):
    method = HeadOnly()
    state = method.init(lora_model)
    plan = plan_of(method, state, 0)
    widest = method.widest_update(plan, method.download(state, plan))
    update, _ = train(lora_model, method, state, 0)
    assert {n: t.shape for n, t in widest.tensors.items()} == {n: t.shape for n, t in update.tensors.items()}
    assert len(pack_update(update)) <= len(pack_update(widest))


def test_head_only_without_a_head_is_refused():
    with pytest.raises(InputError, match="this model has none"):
        HeadOnly().init(torch.nn.Linear(2, 3))


def test_head_only_with_a_solved_head_trains_and_sends_nothing(lora_model: Any):
    method = HeadOnly()
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 0, train_head=False)
    assert (update.tensors, kept, update.metrics) == ({}, {}, {})
    new, diagnostics = method.aggregate(state, [update])
    assert diagnostics["train_loss"] == 0.0
    assert all(torch.equal(new.tensors[name], tensor) for name, tensor in state.tensors.items())


# Local only


Inner = Callable[[Any], Method]


def fft_moe(_model: Any) -> Method:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M)


def personal_router(_model: Any) -> Method:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M, local=LocalSettings(router="personal"))


def fedit(model: Any) -> Method:
    return FedIt(BUDGETS, lora_modules(model))


def flora(model: Any) -> Method:
    return FLora(BUDGETS, lora_modules(model))


inners = pytest.mark.parametrize(
    ("inner", "kind"), [(fft_moe, "moe"), (personal_router, "moe"), (fedit, "lora"), (flora, "lora")]
)


@inners
def test_local_only_sends_nothing_and_changes_nothing(inner: Inner, kind: str, request: pytest.FixtureRequest):
    model = adapted(kind, request)
    method = LocalOnly(inner(model))
    assert method.capabilities.personal
    state = method.init(model)
    plan = plan_round(method, state, 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
    updates = [train(model, method, state, c)[0] for c in BUDGETS]
    for update in updates:
        assert (update.tensors, update.experts, update.shares, update.preferences) == ({}, {}, {}, {})
        assert len(pack_update(update)) <= len(pack_update(method.widest_update(plan.clients[0], {})))
    new, diagnostics = apply_round(method, state, plan, iter(updates))
    assert new.round == 1
    assert all(torch.equal(new.tensors[name], t) for name, t in state.tensors.items())
    assert diagnostics == {"train_loss": pytest.approx(np.mean([u.metrics["loss"] for u in updates]))}
    assert method.assign(new, [0, 2]) == {c: method.assign(state, sorted(BUDGETS))[c] for c in (0, 2)}


@inners
def test_a_second_local_round_goes_on_where_the_first_ended(inner: Inner, kind: str, request: pytest.FixtureRequest):
    """Against the same batches in a row on a model that nothing is loaded into, with new optimisers half-way."""
    model = adapted(kind, request)
    method = LocalOnly(inner(model))
    state = method.init(model)
    _, kept = train(model, method, state, 1)
    second = dataclasses.replace(state, round=1)
    train(model, method, second, 0)  # another client in between
    _, kept = train(model, method, second, 1, kept)
    federated = answers(model)

    first_plan, second_plan = plan_of(method, state, 1), plan_of(method, second, 1)
    with method.inner.session(model, first_plan, method.download(state, first_plan), {}) as session:
        for plan in (first_plan, second_plan):
            balance: Any = getattr(session, "balance", None)
            for sums in (getattr(balance, "slots", {}), getattr(balance, "probs", {})):  # a new round counts anew
                for block in sums:
                    sums[block].zero_()
            optimizers = make_optimizers(session.parameters, plan.training)
            source = generator(plan.seed, "batches")
            for rows in training_batches(np.arange(23), 7, source, steps=3, lengths=examples().lengths):
                batch = examples().batch(rows)
                loss = make_head("averaged").loss(logits(model, batch), batch["labels"])
                loss = loss + session.penalty(token_mask(batch))
                loss.backward(inputs=list(session.parameters.values()))
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        torch.testing.assert_close(answers(model), federated)
        for name, parameter in session.parameters.items():
            torch.testing.assert_close(kept[name], parameter.detach())


@inners
def test_a_local_clients_own_model_is_what_it_trained(inner: Inner, kind: str, request: pytest.FixtureRequest):
    model = adapted(kind, request)
    method = LocalOnly(inner(model))
    state = method.init(model)
    for client_id in BUDGETS:
        plan = plan_of(method, state, client_id)
        method.personalize(model, method.download(state, plan), plan, {})
        start = answers(model)
        _, kept = train(model, method, state, client_id)
        own = answers(model)
        method.install(model, state.tensors, LARGE)
        method.personalize(model, method.download(state, plan), plan, kept)
        assert torch.equal(answers(model), own)
        assert not torch.allclose(own, start)


def test_local_only_costs_what_its_inner_method_does(moe_model: Any):
    inner = fft_moe(moe_model)
    method = LocalOnly(inner)
    state = method.init(moe_model)
    plan = plan_of(method, state, 0)
    assert method.parameters(SMALL) == inner.parameters(SMALL)
    sent, inner_sent = method.download(state, plan), inner.download(state, plan)
    assert set(sent) == set(inner_sent)
    assert all(torch.equal(sent[name], t) for name, t in inner_sent.items())
