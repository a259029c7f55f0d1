"""The expert that every token uses and every client averages: its formula, its files, and what it costs.

test_shared_in_rounds.py tests which clients hold, send and average it.

Sizes: D model dim, H and S hidden units of a routed and of the shared expert, M experts, T tokens.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from federation import examples, plan_client
from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig, SparseMoe
from fftmoe.backbones import attach_adapter, load_backbone, logits
from fftmoe.errors import InputError
from fftmoe.methods.budget import MIB, ExpertShape, Limits, resolve
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.local_only import LocalOnly
from fftmoe.records import (
    Budget,
    ClientPlan,
    ServerState,
)
from fftmoe.rng import generator
from models import FAMILIES, HIDDEN
from shared_updates import BUDGETS, LARGE, NARROW, SMALL, TRAINING

T, D, M, H, S = 11, 7, 5, 3, 2
SHAPE = ExpertShape(HIDDEN, H, S)


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


def test_without_it_a_block_is_unchanged():
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
    """Compared with a loop over tokens and experts that computes the gates itself."""
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
        with_one_resident = moe(tokens()) - moe.mix(tokens(), moe.router(tokens(), 1, moe.resident, moe.gates))
        moe.view(top_k=2)
        with_all_resident = before - moe.mix(tokens(), moe.router(tokens(), 2, None, moe.gates))
    torch.testing.assert_close(with_one_resident, with_all_resident)  # whichever experts are resident


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
            # The head is trained together with the adapter and starts as a copy of the backbone's.
            assert torch.equal(adapted, logits(model, batch))
        moved = adapter.blocks(model)[1]
        assert moved.shared_down is not None
        # Not one number for all: the layer norm that follows takes out what all features have in common.
        moved.shared_down.normal_(generator=generator(7, "down"))
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
