"""FLAME on a tiny BERT: every client holds all experts, uses its own number of them, and learns a scale."""

import dataclasses
from typing import Any

import pytest
import torch

from federation import answers, count_choices
from fftmoe import adapter
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flame import Flame
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.records.names import expert_tensor
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from three_clients import BLOCKS, BUDGETS, LARGE, NARROW, SHAPE, SMALL, TRAINING, M, plan_of, train


def flame(**fields: Any) -> Flame:
    return Flame(budgets=BUDGETS, shape=SHAPE, num_experts=M, **fields)


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
