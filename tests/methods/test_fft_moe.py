"""Tests FFT-MoE on a tiny BERT: the tensors that clients download, train, send and keep."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from federation import count_choices, examples, exchange, plan_client
from fftmoe import adapter
from fftmoe.backbones import head_parameters, logits
from fftmoe.client.update import token_mask
from fftmoe.errors import InputError
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe, load_variation
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.records import Budget, ClientPlan, ClientUpdate, ServerState, Tensors, Training
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import HIDDEN

M, H = 5, 3  # experts and their units, as in the fixture `moe_model`
BLOCKS = (1, 2)  # of the tiny BERT's three
SMALL, LARGE = Budget("small", 1, 2, BLOCKS), Budget("large", 2, 5, BLOCKS)
NARROW = Budget("narrow", 1, 2, (2,))
BUDGETS = {0: SMALL, 1: LARGE, 2: SMALL, 3: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, local_steps=2)


def method(**fields: Any) -> FftMoe:
    return FftMoe(budgets=BUDGETS, shape=ExpertShape(HIDDEN, H), num_experts=M, **fields)


def plan_of(moe: FftMoe, state: ServerState, client_id: int, training: Training = TRAINING) -> ClientPlan:
    return plan_client(moe, state, client_id, moe.budgets, training)


def train(
    model: Any, moe: FftMoe, state: ServerState, plan: ClientPlan, client_state: Tensors | None = None
) -> tuple[ClientUpdate, Tensors]:
    return exchange(model, moe, state, plan, client_state)


def test_a_client_downloads_its_resident_rows_and_the_head_and_nothing_else(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 0)
    sent = moe.download(state, plan)
    heads = {name for name in state.tensors if name.startswith("head.")}
    parts = {f"blocks.{b}.{part}" for b in BLOCKS for part in ("router", "up", "down", "load")}
    assert set(sent) == heads | parts
    for name in heads:
        assert torch.equal(sent[name], state.tensors[name])
    for block in BLOCKS:
        ids = list(plan.experts[block])
        assert len(ids) == SMALL.experts
        for part in ("router", "up", "down"):
            name = f"blocks.{block}.{part}"
            assert torch.equal(sent[name], state.tensors[name][ids])
        assert torch.equal(sent[f"blocks.{block}.load"], torch.full((2,), 1 / M))


def test_a_client_with_fewer_blocks_downloads_and_uploads_only_those_blocks(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 3)
    assert {name for name in moe.download(state, plan) if not name.startswith("head.")} == {
        f"blocks.2.{part}" for part in ("router", "up", "down", "load")
    }
    update, _ = train(moe_model, moe, state, plan)
    assert set(update.experts) == set(update.shares) == set(update.preferences) == {2}
    assert not any(name.startswith("blocks.1") for name in update.tensors)


def test_an_update_covers_exactly_the_experts_with_routed_tokens(moe_model: Any):
    """An independent count of the router's choices over the same batches gives the same experts."""
    moe = method(local=LocalSettings(balance="none", z_strength=0.0))
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 0, dataclasses.replace(TRAINING, local_steps=1))
    plan = dataclasses.replace(plan, experts={1: (0, 3), 2: (1, 4)})
    # Rows of zeros tie for every token, on any processor. The same one wins every tie, so the other has no token.
    state.tensors["blocks.1.router"][[0, 3]] = 0
    update, _ = train(moe_model, moe, state, plan)
    counted = count_choices(moe_model, moe, state, plan)
    for block in BLOCKS:
        trained = [m for m, slots in zip(plan.experts[block], counted[block], strict=True) if slots]
        assert update.experts[block] == tuple(trained)
        shares = [slots / sum(counted[block]) for slots in counted[block] if slots]
        assert update.shares[block] == pytest.approx(shares)
        assert all(update.tensors[f"blocks.{block}.{part}"].shape[0] == len(trained) for part in ("router", "up"))
        assert (update.tensors[f"blocks.{block}.down"].flatten(1) != 0).any(1).all()
    assert len(update.experts[1]) == 1
    assert len(update.experts[2]) == 2


def test_a_shared_router_sends_its_whole_change_and_keeps_nothing(moe_model: Any):
    moe = method(local=LocalSettings(router="shared"))
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 1)
    update, kept = train(moe_model, moe, state, plan)
    assert set(kept) == {f"blocks.{block}.affinity" for block in BLOCKS}
    for block in BLOCKS:
        rows = list(update.experts[block])
        moved = adapter.blocks(moe_model)[block].router.weight.detach()[rows]  # this tier holds the whole pool
        delta = moved - state.tensors[f"blocks.{block}.router"][rows]
        assert torch.equal(update.tensors[f"blocks.{block}.router"], delta)
        assert (delta != 0).any()


def test_a_personal_router_sends_nothing_and_keeps_its_whole_change(moe_model: Any):
    moe = method(local=LocalSettings(router="personal"))
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 1)
    update, kept = train(moe_model, moe, state, plan)
    assert not any(name.endswith(".router") for name in update.tensors)
    for block in BLOCKS:
        moved = adapter.blocks(moe_model)[block].router.weight.detach()
        assert torch.equal(kept[f"blocks.{block}.router"], moved - state.tensors[f"blocks.{block}.router"])


def test_a_shared_and_personal_router_splits_its_change_and_starts_from_the_sum(moe_model: Any):
    moe = method(local=LocalSettings(router="shared+personal", personal_fraction=0.25))
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 1)
    update, kept = train(moe_model, moe, state, plan)
    for block in BLOCKS:
        name, rows = f"blocks.{block}.router", list(update.experts[block])
        delta = adapter.blocks(moe_model)[block].router.weight.detach() - state.tensors[name]
        assert torch.equal(update.tensors[name], 0.75 * delta[rows])  # 3/4 and 1/4 are exact
        assert torch.equal(kept[name], 0.25 * delta)
    with moe.session(moe_model, plan, moe.download(state, plan), kept):
        for block, sparse in adapter.blocks(moe_model).items():
            name = f"blocks.{block}.router"
            assert torch.equal(sparse.router.weight.detach(), state.tensors[name] + kept[name])


def test_personal_rows_stay_with_their_expert_when_residents_change(moe_model: Any):
    moe = method(local=LocalSettings(router="personal"))
    state = moe.init(moe_model)
    first = dataclasses.replace(plan_of(moe, state, 0), experts={1: (0, 3), 2: (1, 4)})
    _, kept = train(moe_model, moe, state, first)
    assert kept["blocks.1.router"].shape == (M, HIDDEN)
    assert not kept["blocks.1.router"][[1, 2, 4]].any()
    second = dataclasses.replace(first, experts={1: (2, 3), 2: (0, 2)})
    with moe.session(moe_model, second, moe.download(state, second), kept):
        router = adapter.blocks(moe_model)[1].router.weight.detach()
    rows = state.tensors["blocks.1.router"]
    assert torch.equal(router, torch.stack([rows[2], rows[3] + kept["blocks.1.router"][3]]))


def test_the_router_of_a_client_with_one_expert_per_token_learns(moe_model: Any):
    moe = method(local=LocalSettings(balance="none", z_strength=0.0))  # only the task loss moves the router
    state = moe.init(moe_model)
    update, _ = train(moe_model, moe, state, plan_of(moe, state, 0))
    for block in BLOCKS:
        assert (update.tensors[f"blocks.{block}.router"] != 0).any()


@pytest.mark.parametrize("balance", ["heterogeneity-aware", "switch", "none"])
def test_only_a_loss_that_is_switched_on_adds_a_penalty(moe_model: Any, balance: str):
    moe = method(local=LocalSettings(balance=balance, balance_strength=0.1, z_strength=0.0))
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 1)
    batch = examples().batch(range(7))
    with moe.session(moe_model, plan, moe.download(state, plan), {}) as session:
        logits(moe_model, batch)
        penalty = float(session.penalty(token_mask(batch)).detach())
    assert (penalty == 0.0) is (balance == "none")


def test_the_switch_loss_equals_its_strength_at_uniform_probabilities(moe_model: Any):
    """With equal router rows, P is uniform, and sum f_m P_m / q_m = sum f_m = 1 for the uniform target."""
    moe = method(local=LocalSettings(balance="switch", balance_strength=0.125, z_strength=0.0))
    state = moe.init(moe_model)
    for block in BLOCKS:
        state.tensors[f"blocks.{block}.router"].zero_()
    plan, batch = plan_of(moe, state, 1), examples().batch(range(7))
    with moe.session(moe_model, plan, moe.download(state, plan), {}) as session:
        logits(moe_model, batch)
        assert float(session.penalty(token_mask(batch)).detach()) == pytest.approx(0.125, rel=1e-6)  # float32 sums


def test_the_z_loss_is_the_squared_log_of_the_residents_at_zero_logits(moe_model: Any):
    moe = method(local=LocalSettings(balance="none", z_strength=0.5))
    state = moe.init(moe_model)
    for block in BLOCKS:
        state.tensors[f"blocks.{block}.router"].zero_()
    plan, batch = plan_of(moe, state, 0), examples().batch(range(7))
    with moe.session(moe_model, plan, moe.download(state, plan), {}) as session:
        logits(moe_model, batch)
        expected = 0.5 * np.log(SMALL.experts) ** 2
        assert float(session.penalty(token_mask(batch)).detach()) == pytest.approx(expected, rel=1e-6)  # float32


def test_a_skewed_client_has_a_weaker_balance_loss(moe_model: Any):
    """The strength is lambda (1 - s), which is largest for a client whose routing equals the global load."""
    moe = method(local=LocalSettings(balance_strength=1.0, balance_beta=0.0, z_strength=0.0))
    state = moe.init(moe_model)
    plan, batch = plan_of(moe, state, 1), examples().batch(range(7))
    mask = token_mask(batch)

    def penalty(load: Tensors) -> float:
        seen = dataclasses.replace(state, load=load)
        with moe.session(moe_model, plan, moe.download(seen, plan), {}) as session:
            logits(moe_model, batch)
            return float(session.penalty(mask).detach())

    with moe.session(moe_model, plan, moe.download(state, plan), {}) as session:
        logits(moe_model, batch)
        own = {f"blocks.{b}": adapter.expert_load(r, mask).double() for b, r in session.read_routing().items()}
    unlike = {name: torch.where(load == load.min(), 1.0, 0.0).double() for name, load in own.items()}
    assert penalty(own) > 1.5 * penalty(unlike) > 0


def test_the_load_stays_a_distribution_and_moves_by_the_decay(moe_model: Any):
    moe = method(load_decay=0.75)
    state = moe.init(moe_model)
    plan = plan_round(moe, state, 1, [0, 1, 3], BUDGETS, TRAINING, seed=5)
    updates = [train(moe_model, moe, state, client)[0] for client in plan.clients]
    new, _ = apply_round(moe, state, plan, updates)
    for block in BLOCKS:
        name, routed = f"blocks.{block}", torch.zeros(M, dtype=torch.float64)
        for update in updates:
            for m, share in zip(update.experts.get(block, ()), update.shares.get(block, ()), strict=True):
                routed[m] += update.num_examples * share
        torch.testing.assert_close(new.load[name], 0.75 / M + 0.25 * routed / routed.sum())
        assert float(new.load[name].sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_load_of_a_block_without_clients_stays(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    plan = plan_round(moe, state, 1, [3], BUDGETS, TRAINING, seed=5)
    new, _ = apply_round(moe, state, plan, [train(moe_model, moe, state, plan.clients[0])[0]])
    assert torch.equal(new.load["blocks.1"], state.load["blocks.1"])
    assert not torch.equal(new.load["blocks.2"], state.load["blocks.2"])
    for part in ("router", "up", "down"):
        assert torch.equal(new.tensors[f"blocks.1.{part}"], state.tensors[f"blocks.1.{part}"])


def test_a_round_moves_the_head_and_exactly_the_experts_that_were_trained(moe_model: Any):
    moe = method(optimizer=ServerOptimizer("momentum"))
    state = moe.init(moe_model)
    plan = plan_round(moe, state, 1, [0, 2], BUDGETS, TRAINING, seed=5)
    updates = [train(moe_model, moe, state, client)[0] for client in plan.clients]
    new, diagnostics = apply_round(moe, state, plan, updates)
    assert new.round == 1
    assert set(new.preferences) == {0, 2}
    assert not torch.equal(new.tensors["head.weight"], state.tensors["head.weight"])
    trained = {block: {m for update in updates for m in update.experts[block]} for block in BLOCKS}
    for block in BLOCKS:
        name = f"blocks.{block}.up"
        moved = (new.tensors[name] != state.tensors[name]).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(moved) == trained[block]
    share = sum(map(len, trained.values())) / (M * len(BLOCKS))
    assert diagnostics["experts_trained"] == pytest.approx(share)
    assert diagnostics["train_loss"] == pytest.approx(np.mean([update.metrics["loss"] for update in updates]))


def test_aggregating_a_round_does_not_change_the_old_state(moe_model: Any):
    moe = method(optimizer=ServerOptimizer("adam"))
    state = moe.init(moe_model)
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    plan = plan_round(moe, state, 1, [1], BUDGETS, TRAINING, seed=5)
    apply_round(moe, state, plan, [train(moe_model, moe, state, plan.clients[0])[0]])
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in before.items())
    assert (state.round, state.optimizer, state.preferences) == (0, {}, {})


def test_preferences_rank_every_expert_that_the_client_has_held(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    first = dataclasses.replace(plan_of(moe, state, 0), experts={1: (0, 3), 2: (1, 4)})
    update, kept = train(moe_model, moe, state, first)
    assert {block: set(ids) for block, ids in update.preferences.items()} == {1: {0, 3}, 2: {1, 4}}
    second = dataclasses.replace(first, experts={1: (2, 3), 2: (0, 4)})
    update, kept = train(moe_model, moe, state, second, kept)
    assert {block: set(ids) for block, ids in update.preferences.items()} == {1: {0, 2, 3}, 2: {0, 1, 4}}
    for block in BLOCKS:
        affinity = kept[f"blocks.{block}.affinity"]
        assert sorted(update.preferences[block], key=lambda m: -float(affinity[m])) == list(update.preferences[block])
        # Relative to uniform: the two residents' mean probabilities sum to 1, their affinities to 2.
        assert float(affinity[list(second.experts[block])].sum()) == pytest.approx(2.0, rel=1e-6)  # float32


def test_a_block_outside_the_budget_equals_the_backbones_block(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    batch = examples().batch(range(5))
    moe.install(moe_model, state.tensors, NARROW)
    assert {block: m.num_experts for block, m in adapter.blocks(moe_model).items()} == {1: 0, 2: M}
    narrow = logits(moe_model, batch)
    silenced = {**state.tensors, "blocks.1.down": torch.zeros(M, H, HIDDEN)}
    moe.install(moe_model, silenced, dataclasses.replace(NARROW, blocks=BLOCKS))
    torch.testing.assert_close(narrow, logits(moe_model, batch))
    moe.install(moe_model, state.tensors, LARGE)
    assert {block: m.num_experts for block, m in adapter.blocks(moe_model).items()} == {1: M, 2: M}
    assert not torch.allclose(narrow, logits(moe_model, batch))


def test_install_loads_the_global_model_with_the_tiers_top_k(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    train(moe_model, moe, state, plan_of(moe, state, 0))  # leaves the client's experts in the moe_model
    moe.install(moe_model, state.tensors, LARGE)
    for block, sparse in adapter.blocks(moe_model).items():
        assert sparse.top_k == LARGE.top_k
        assert torch.equal(sparse.router.weight.detach(), state.tensors[f"blocks.{block}.router"])
        assert torch.equal(sparse.up.detach(), state.tensors[f"blocks.{block}.up"])
    for name, parameter in head_parameters(moe_model).items():
        assert torch.equal(parameter.detach(), state.tensors[f"head.{name}"])


def test_a_clients_update_does_not_depend_on_the_client_before_it(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    plan = plan_of(moe, state, 0)
    fresh, _ = train(moe_model, moe, state, plan)
    train(moe_model, moe, state, plan_of(moe, state, 1))
    again, _ = train(moe_model, moe, state, plan)
    assert fresh.experts == again.experts
    assert all(torch.equal(fresh.tensors[name], again.tensors[name]) for name in fresh.tensors)


def test_the_backbone_never_changes(moe_model: Any):
    moe = method()
    state = moe.init(moe_model)
    frozen = {name: p.clone() for name, p in moe_model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 20
    train(moe_model, moe, state, plan_of(moe, state, 1))
    now = dict(moe_model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


def test_load_variation_is_zero_for_a_uniform_load():
    assert load_variation({"blocks.0": torch.full((M,), 3.0, dtype=torch.float64)}) == 0.0
    # One of five experts has the whole load: the mean is 1/5, the variance (16 + 4) / 25 / 5 = 4/25, and the
    # coefficient of variation (2/5) / (1/5).
    assert load_variation({"blocks.0": torch.eye(M, dtype=torch.float64)[2]}) == pytest.approx(2.0)
    assert load_variation({}) == 0.0


def test_unknown_settings_name_the_nearest():
    with pytest.raises(InputError, match="did you mean 'switch'"):
        LocalSettings(balance="swich")
    with pytest.raises(InputError, match="did you mean 'personal'"):
        LocalSettings(router="persona")


def test_load_counts_examples_or_clients(moe_model: Any):
    """If clients may be malicious, each counts as one, because a client may claim any number of examples."""
    experts, tensors = {2: (0, 1)}, {}

    def load(num_examples: int, **fields: Any) -> torch.Tensor:
        moe = method(residents="balanced", load_decay=0.0, **fields)
        updates = [
            ClientUpdate(1, 0, num_examples, tensors, experts=experts, shares={2: (1.0, 0.0)}),
            ClientUpdate(1, 2, 7, tensors, experts=experts, shares={2: (0.0, 1.0)}),
        ]
        return moe.aggregate(moe.init(moe_model), updates)[0].load["blocks.2"]

    assert load(21).tolist() == [0.75, 0.25, 0, 0, 0]
    assert load(21, weigh_load=False).tolist() == [0.5, 0.5, 0, 0, 0]
