"""The expert that every token uses and every client averages: its formula, who holds it, and what it costs.

Sizes: D model dim, H and S hidden units of a routed and of the shared expert, M experts, T tokens.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from federation import examples, exchange, plan_client
from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig, SparseMoe
from fftmoe.backbones import attach_adapter, load_backbone, logits
from fftmoe.errors import InputError
from fftmoe.methods.budget import MIB, ExpertShape, Limits, resolve
from fftmoe.methods.fft_moe import FftMoe
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
from fftmoe.rng import generator, numpy_generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import FAMILIES, HIDDEN

T, D, M, H, S = 11, 7, 5, 3, 2
BLOCKS = (1, 2)  # of the tiny BERT's three
SMALL, LARGE = Budget("small", 1, 2, BLOCKS), Budget("large", 2, M, BLOCKS)
NARROW = Budget("narrow", 1, 2, (2,))
BUDGETS = {0: SMALL, 1: LARGE, 2: SMALL, 3: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, local_steps=2)
SHAPE = ExpertShape(HIDDEN, H, S)
NAMES = {f"shared.{block}.{part}" for block in BLOCKS for part in ("up", "down")}


def sparse_moe(shared_dim: int = S, **options: Any) -> SparseMoe:
    return SparseMoe(M, H, D, 2, generator(4, "pool"), shared_dim=shared_dim, **options)


def trained(moe: SparseMoe) -> SparseMoe:
    """With second layers that are not zero."""
    torch.nn.init.normal_(moe.down, generator=generator(1, "down"))
    if moe.shared_down is not None:
        torch.nn.init.normal_(moe.shared_down, generator=generator(2, "down"))
    return moe


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T,)), D, generator=generator(3, "x"))


# One block


def test_without_it_a_block_is_what_it_was():
    without, given_none = SparseMoe(M, H, D, 2, generator(4, "pool")), sparse_moe(0)
    with_it = sparse_moe()
    assert set(without.state_dict()) == set(given_none.state_dict()) == {"router.weight", "up", "down"}
    assert set(with_it.state_dict()) == {"router.weight", "up", "down", "shared_up", "shared_down"}
    for name, value in without.state_dict().items():
        assert torch.equal(value, given_none.state_dict()[name])
        assert torch.equal(value, with_it.state_dict()[name])  # the routed experts are drawn first
    assert [p.shape for p in given_none.parameters()] == [p.shape for p in without.parameters()]


def test_untrained_it_adds_exactly_nothing():
    moe = sparse_moe()
    assert moe.shared_up is not None
    assert (moe.shared_up != 0).all()
    assert torch.equal(moe(tokens()), torch.zeros(T, D))


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("compute", ["loop", "wide"])
def test_a_block_adds_the_routed_experts_and_the_shared_one(activation: str, scale: float, compute: str):
    """Against a loop over tokens and experts, with gates of its own."""
    moe = trained(sparse_moe(activation=activation, scale=scale, compute=compute))
    act = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}[activation]
    assert moe.shared_up is not None
    assert moe.shared_down is not None
    x = tokens()
    rows = []
    for x_D in x:
        probs = (moe.router.weight @ x_D).softmax(0)
        chosen = probs.topk(2).indices.tolist()
        y_D = act(moe.shared_up @ x_D) @ moe.shared_down
        for m in chosen:
            y_D = y_D + probs[m] / probs[chosen].sum() * (act(moe.up[m] @ x_D) @ moe.down[m])
        rows.append(scale * y_D)
    torch.testing.assert_close(moe(x), torch.stack(rows))
    assert moe(tokens(2, 3)).shape == (2, 3, D)


def test_every_token_reaches_it_and_none_waits_for_the_router():
    moe = trained(sparse_moe())
    assert moe.shared_up is not None
    moe(tokens()).square().sum().backward()
    routed, shared = moe.up.grad, moe.shared_up.grad
    assert routed is not None
    assert shared is not None
    assert (shared != 0).all()
    with torch.no_grad():
        before = moe(tokens())
        moe.view(top_k=1, resident=torch.tensor([True] + [False] * (M - 1)))
        alone = moe(tokens()) - moe.mix(tokens(), moe.router(tokens(), 1, moe.resident, moe.gates))
        moe.view(top_k=2)
        everyone = before - moe.mix(tokens(), moe.router(tokens(), 2, None, moe.gates))
    torch.testing.assert_close(alone, everyone)  # whoever is resident


def test_a_block_without_experts_adds_nothing_of_it():
    moe = trained(sparse_moe())
    moe.load_experts(moe.router.weight[:0], moe.up[:0], moe.down[:0], 1)
    assert torch.equal(moe(tokens()), torch.zeros(T, D))


def test_it_is_replaced_by_a_copy_of_any_width():
    moe = trained(sparse_moe())
    up, down = torch.ones(5, D), torch.full((5, D), 2.0)
    moe.load_shared(up, down)
    assert moe.shared_up is not None
    assert moe.shared_down is not None
    assert moe.shared_up.requires_grad
    up.zero_()
    assert torch.equal(moe.shared_up, torch.ones(5, D))
    assert torch.equal(moe.shared_down, down)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="has no shared expert to load weights into; set shared_dim"):
        sparse_moe(0).load_shared(torch.zeros(S, D), torch.zeros(S, D))
    with pytest.raises(InputError, match=r"up \(2, 8\), down \(2, 8\) does not fit a block of model dim=7"):
        sparse_moe().load_shared(torch.zeros(S, D + 1), torch.zeros(S, D + 1))
    with pytest.raises(InputError, match=r"up \(2, 7\), down \(3, 7\)"):
        sparse_moe().load_shared(torch.zeros(S, D), torch.zeros(S + 1, D))
    with pytest.raises(InputError, match="shared_dim=-1 must be at least 0"):
        MoeAdapterConfig(shared_dim=-1)


# A whole model


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit"])
def test_an_untrained_adapter_with_it_is_exactly_the_backbone(family: str):
    model = attach_adapter(FAMILIES[family].make(), MoeAdapterConfig(num_experts=M, expert_dim=H, shared_dim=S))
    batch = FAMILIES[family].batch()
    with torch.inference_mode():
        adapted = logits(model, batch)
        with model.disable_adapter():
            # The head is trained beside the adapter and starts as a copy of the backbone's.
            assert torch.equal(adapted, logits(model, batch))
        moved = adapter.blocks(model)[1]
        assert moved.shared_down is not None
        moved.shared_down.fill_(0.5)
        assert not torch.equal(adapted, logits(model, batch))


@pytest.fixture
def model(backbone_folder: Path) -> Any:
    """Untrained experts add nothing and so give the router no gradient; these have been trained a little."""
    return tiny_model(backbone_folder)


def tiny_model(folder: Path, shared_dim: int = S, seed: int = 0) -> Any:
    config = MoeAdapterConfig(num_experts=M, expert_dim=H, shared_dim=shared_dim, top_k=1, blocks="last-2", seed=seed)
    model = attach_adapter(load_backbone(str(folder), num_labels=3, seed=seed), config)
    for block, moe in adapter.blocks(model).items():
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down", seed))
        if moe.shared_down is not None:
            torch.nn.init.normal_(moe.shared_down, std=0.1, generator=generator(block, "shared", seed))
    return model


def test_it_is_saved_and_reloaded_by_peft(model: Any, backbone_folder: Path, tmp_path: Path):
    model.save_pretrained(str(tmp_path))
    # Another seed, so that nothing can be right by chance.
    loaded = PeftModel.from_pretrained(load_backbone(str(backbone_folder), num_labels=3, seed=7), str(tmp_path))
    batch = examples().batch(range(5))
    with torch.inference_mode():
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    for block, moe in adapter.blocks(loaded).items():
        for part in ("shared_up", "shared_down"):
            assert torch.equal(getattr(moe, part), getattr(adapter.blocks(model)[block], part))
    assert getattr(loaded.peft_config["default"], "shared_dim", None) == S


# Server and client


def method(**fields: Any) -> FftMoe:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M, **fields)


def plan_of(moe: FftMoe | LocalOnly, state: ServerState, client_id: int) -> ClientPlan:
    return plan_client(moe, state, client_id, BUDGETS, TRAINING)


def train(
    model: Any, moe: FftMoe | LocalOnly, state: ServerState, client_id: int, kept: Tensors | None = None
) -> tuple[ClientUpdate, Tensors]:
    return exchange(model, moe, state, plan_of(moe, state, client_id), kept)


def test_the_state_holds_one_per_block_and_none_without(model: Any, backbone_folder: Path):
    state = method().init(model)
    assert {name for name in state.tensors if name.startswith("shared.")} == NAMES
    plain = tiny_model(backbone_folder, shared_dim=0)
    without = method().init(plain)
    assert set(state.tensors) - set(without.tensors) == NAMES
    assert set(state.load) == set(without.load)


@pytest.mark.parametrize("client_id", BUDGETS)
def test_a_client_downloads_trains_and_sends_it_only_for_its_own_blocks(model: Any, client_id: int):
    moe = method()
    state = moe.init(model)
    plan = plan_of(moe, state, client_id)
    downloaded = moe.download(state, plan)
    own = {name for name in NAMES if int(name.split(".")[1]) in BUDGETS[client_id].blocks}
    assert {name for name in downloaded if name.startswith("shared.")} == own
    for name in own:
        assert torch.equal(downloaded[name], state.tensors[name])  # whole, whatever the budget
    with moe.session(model, plan, downloaded, {}) as session:
        held = {name: p for name, p in session.parameters.items() if name.startswith("shared.")}
        assert set(held) == own
        trained_here = sum(p.numel() for name, p in session.parameters.items() if not name.startswith("head."))
        assert trained_here == moe.parameters(BUDGETS[client_id])
        for block, part in adapter.blocks(model).items():
            assert part.shared_up is not None
            assert part.shared_up.shape[0] == (S if block in BUDGETS[client_id].blocks else 0)
    update, kept = train(model, moe, state, client_id)
    sent = {name: delta for name, delta in update.tensors.items() if name.startswith("shared.")}
    assert {name: delta.shape for name, delta in sent.items()} == {name: state.tensors[name].shape for name in own}
    assert all((delta != 0).any() for delta in sent.values())
    assert not any(name.startswith("shared.") for name in kept)
    widest = moe.widest_update(plan, downloaded)
    assert {name for name in widest.tensors if name.startswith("shared.")} == own
    assert len(pack_update(update)) <= len(pack_update(widest))


@given(seed=st.integers(0, 2**31), power=st.sampled_from([0.0, 2.0]))
@settings(max_examples=10)
def test_it_is_averaged_by_examples_over_the_clients_that_hold_its_block(seed: int, power: float):
    """Whatever the routed experts are weighed by, and whatever their clients trained."""
    moe, source, random = (
        method(merge=partial(WeightedSum, activation_power=power)),
        generator(seed, "deltas"),
        numpy_generator(seed, "sizes"),
    )
    shapes = {name: (S, HIDDEN) for name in NAMES}
    shapes |= {f"blocks.{b}.{part}": (M, H, HIDDEN) for b in BLOCKS for part in ("up", "down")}
    shapes |= {f"blocks.{b}.router": (M, HIDDEN) for b in BLOCKS} | {"head.weight": (3, HIDDEN)}
    tensors = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    load = {f"blocks.{block}": torch.full((M,), 1 / M, dtype=torch.float64) for block in BLOCKS}
    state = ServerState(0, tensors, load=load)
    plan = plan_round(moe, state, 1, list(BUDGETS), BUDGETS, TRAINING, seed=5)
    updates = []
    for client in plan.clients:
        downloaded = moe.download(state, client)
        widest = moe.widest_update(client, downloaded)
        shares = {block: tuple(random.dirichlet([1.0] * len(ids)).tolist()) for block, ids in client.experts.items()}
        deltas = {name: torch.randn(t.shape, generator=source) for name, t in widest.tensors.items()}
        size = int(random.integers(1, 1000))
        updates.append(dataclasses.replace(widest, tensors=deltas, shares=shares, num_examples=size))
    new, _ = apply_round(moe, state, plan, updates)
    for name in NAMES:
        holders = [u for u in updates if name in u.tensors]
        assert [u.client_id for u in holders] == ([0, 1, 2] if ".1." in name else [0, 1, 2, 3])
        weights = np.array([u.num_examples for u in holders], dtype=float)
        mean = np.tensordot(weights / weights.sum(), [u.tensors[name].double().numpy() for u in holders], 1)
        np.testing.assert_allclose(new.tensors[name], tensors[name].double().numpy() + mean, rtol=1e-6, atol=1e-6)


def test_a_round_without_a_client_of_its_block_changes_nothing_in_it(model: Any):
    moe = method()
    state = moe.init(model)
    plan = plan_round(moe, state, 1, [3], BUDGETS, TRAINING, seed=5)
    new, _ = apply_round(moe, state, plan, [train(model, moe, state, 3)[0]])
    for name in NAMES:
        assert torch.equal(new.tensors[name], state.tensors[name]) is (".1." in name)


@pytest.mark.parametrize("budget", [SMALL, LARGE, NARROW], ids=lambda budget: budget.name)
def test_the_global_model_has_it_in_the_blocks_of_the_budget(model: Any, budget: Budget):
    moe = method()
    state = moe.init(model)
    moe.install(model, state.tensors, NARROW)  # what another tier left must not matter
    moe.install(model, state.tensors, budget)
    for block, part in adapter.blocks(model).items():
        assert part.shared_up is not None
        assert part.shared_down is not None
        if block in budget.blocks:
            assert torch.equal(part.shared_up, state.tensors[f"shared.{block}.up"])
            assert torch.equal(part.shared_down, state.tensors[f"shared.{block}.down"])
        else:
            assert part.shared_up.shape == part.shared_down.shape == (0, HIDDEN)


def test_a_clients_own_model_has_what_it_downloaded(model: Any):
    moe = method()
    state = moe.init(model)
    plan = plan_of(moe, state, 3)
    moe.personalize(model, moe.download(state, plan), plan, {})
    own = adapter.blocks(model)[2].shared_up
    assert own is not None
    assert torch.equal(own, state.tensors["shared.2.up"])


def test_in_local_training_a_client_keeps_its_own(model: Any):
    alone = LocalOnly(method())
    state = alone.init(model)
    update, kept = train(model, alone, state, 0)
    assert not update.tensors
    assert set(kept) >= NAMES
    assert all(not torch.equal(kept[name], state.tensors[name]) for name in NAMES)
    _, again = train(model, alone, state, 0, kept)
    alone.personalize(model, alone.download(state, plan_of(alone, state, 0)), plan_of(alone, state, 0), again)
    own = adapter.blocks(model)[1].shared_up
    assert own is not None
    assert torch.equal(own, again["shared.1.up"])


# Budgets: D = 7, H = 3, so an expert has 49 parameters; S = 2, so the shared one has 28.

SMALL_SHAPE = ExpertShape(D, H, S)


def budget(**limits: Any) -> Budget:
    tier = Limits(name="tier", fraction=1.0, **limits)
    return resolve(tier, shape=SMALL_SHAPE, num_experts=13, blocks=(2, 5), tokens_per_round=1000)


def test_a_block_costs_its_experts_and_the_shared_one():
    moe = sparse_moe()
    assert SMALL_SHAPE.shared_parameters == 2 * S * D == 28
    assert SMALL_SHAPE.parameters == 49  # it has no router row, and an expert costs what it did
    assert SMALL_SHAPE.block_parameters(M) == sum(p.numel() for p in moe.parameters()) == 5 * 49 + 28
    assert ExpertShape(D, H).block_parameters(M) == sum(p.numel() for p in sparse_moe(0).parameters())


def test_a_limit_pays_for_the_shared_expert_first():
    # 2 blocks, 4 bytes, 4 copies in memory: 1568 bytes an expert and 896 for what is shared; an upload of 392 and 224.
    for experts in (1, 3, 11):
        assert budget(top_k=1, memory_mib=(896 + experts * 1568) / MIB).experts == experts
        assert budget(top_k=1, memory_mib=(896 + (experts + 1) * 1568 - 1) / MIB).experts == experts
        assert budget(top_k=1, uplink_mib=(224 + experts * 392) / MIB).experts == experts
        assert budget(top_k=1, uplink_mib=(224 + (experts + 1) * 392 - 1) / MIB).experts == experts
    # 4 experts: the router takes 168 FLOPs a token, what is shared 3 * 4 * 2 * 7 = 168, an expert 252.
    for top_k in (1, 2, 4):
        gflops = 1000 * 2 * (168 + 168 + top_k * 252) / 1e9
        assert budget(experts=4, gflops=gflops * (1 + 1e-12)).top_k == top_k  # above the rounding of the division


@given(st.floats((896 + 1568) / MIB, 1.0), st.floats((224 + 392) / MIB, 1.0), st.floats(5e-3, 1.0))
def test_what_is_derived_keeps_within_every_limit(memory: float, uplink: float, gflops: float):
    tier = budget(memory_mib=memory, uplink_mib=uplink, gflops=gflops)
    assert 1 <= tier.top_k <= tier.experts
    assert 2 * 4 * 4 * SMALL_SHAPE.block_parameters(tier.experts) / MIB <= memory * (1 + 1e-12)
    assert 2 * 4 * SMALL_SHAPE.block_parameters(tier.experts) / MIB <= uplink * (1 + 1e-12)
    assert 1000 * 2 * SMALL_SHAPE.flops_per_token(tier.top_k, tier.experts) / 1e9 <= gflops * (1 + 1e-12)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"top_k": 1, "memory_mib": (896 + 1567) / MIB}, ("'tier'", "cannot hold one expert", "adapter.shared_dim")),
        ({"top_k": 1, "memory_mib": 800 / MIB}, ("0.002 MiB of memory", "0.001 MiB of uplink")),
        ({"top_k": 1, "uplink_mib": 223 / MIB}, ("uplink_mib=", "fewer `blocks`")),
        ({"experts": 4, "gflops": 1000 * 2 * (168 + 168 + 251) / 1e9}, ("'tier'", "cannot compute one expert")),
    ],
)
def test_a_limit_below_one_expert_and_the_shared_one_is_refused(limits: dict[str, Any], words: tuple[str, ...]):
    with pytest.raises(InputError) as error:
        budget(**limits)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("shared_dim", [0, S])
def test_flops_are_those_that_torch_counts(shared_dim: int):
    moe = trained(sparse_moe(shared_dim, compute="loop"))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        moe(tokens())
    # Forward and backward take three times the forward pass.
    assert 3 * counter.get_total_flops() == T * ExpertShape(D, H, shared_dim).flops_per_token(top_k=2, experts=M)
