"""Laws of the router, the gates and the sparse mixture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.adapter import SparseMoe
from fftmoe.adapter.routing import GATES, gates
from fftmoe.errors import InputError
from fftmoe.rng import generator

T, D, M, K, H = 11, 7, 5, 2, 3


def sparse_moe(seed: int = 0, *, top_k: int = K, kind: str = "detached", compute: str = "auto") -> SparseMoe:
    moe = SparseMoe(M, H, D, top_k, generator(seed, "test"), gates=kind, compute=compute)
    torch.nn.init.normal_(moe.down, generator=generator(seed, "down"))
    return moe


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(T, D, generator=generator(seed, "x"))


def test_an_untrained_adapter_adds_exactly_nothing():
    moe = SparseMoe(M, H, D, K, generator(0))
    assert torch.equal(moe(tokens()), torch.zeros(T, D))


def test_the_same_generator_gives_the_same_pool():
    one, two = SparseMoe(M, H, D, K, generator(4)), SparseMoe(M, H, D, K, generator(4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_leading_dimensions_are_tokens():
    moe = sparse_moe()
    x = torch.randn(2, 3, D, generator=generator(1))
    torch.testing.assert_close(moe(x), moe(x.flatten(0, 1)).view(2, 3, D))


@given(st.integers(0, 10**6), st.integers(1, M))
@settings(deadline=None, max_examples=25)
def test_detached_gates_sum_to_one_for_every_k(seed: int, top_k: int):
    probs = torch.randn(T, M, generator=generator(seed)).softmax(-1)
    for kind in ("detached", "renormalized"):
        gates_TK, ids_TK = gates(probs, top_k, kind)
        torch.testing.assert_close(gates_TK.sum(-1), torch.ones(T))
        assert torch.equal(ids_TK, probs.topk(top_k).indices)


@pytest.mark.parametrize(("kind", "learns"), [("detached", True), ("renormalized", False), ("softmax", True)])
def test_a_router_with_one_expert_per_token_learns_unless_renormalized(kind: str, learns: bool):
    moe = sparse_moe(top_k=1, kind=kind)
    moe(tokens()).square().sum().backward()
    assert moe.router.weight.grad is not None
    assert bool((moe.router.weight.grad != 0).any()) is learns


@pytest.mark.parametrize("kind", GATES)
def test_every_gate_kind_trains_the_router_at_k_2(kind: str):
    moe = sparse_moe(kind=kind)
    moe(tokens()).square().sum().backward()
    assert moe.router.weight.grad is not None
    assert bool((moe.router.weight.grad != 0).any())


@given(st.integers(0, 10**6), st.permutations(range(M)))
@settings(deadline=None, max_examples=25)
def test_permuting_experts_with_their_router_rows_changes_nothing(seed: int, order: list[int]):
    moe, x = sparse_moe(seed), tokens(seed)
    expected = moe(x)
    moe.load_experts(moe.router.weight[order], moe.up[order], moe.down[order], K)
    torch.testing.assert_close(moe(x), expected)


@given(st.integers(0, 10**6), st.sets(st.integers(0, M - 1), min_size=1), st.data())
@settings(deadline=None, max_examples=40)
def test_masking_the_pool_equals_slicing_it(seed: int, residents: set[int], data: st.DataObject):
    top_k = data.draw(st.integers(1, len(residents)))
    ids = torch.tensor(sorted(residents))
    pool, client, x = sparse_moe(seed), sparse_moe(seed), tokens(seed)
    pool.view(top_k, torch.zeros(M, dtype=torch.bool).index_fill(0, ids, True))
    client.load_experts(client.router.weight[ids], client.up[ids], client.down[ids], top_k)
    masked, sliced = pool(x), client(x)
    torch.testing.assert_close(masked, sliced)
    masked.square().mean().backward()
    sliced.square().mean().backward()
    for whole, part in zip(pool.parameters(), client.parameters(), strict=True):
        assert whole.grad is not None
        torch.testing.assert_close(whole.grad[ids], part.grad)
        away = [m for m in range(M) if m not in residents]
        assert torch.equal(whole.grad[away], torch.zeros_like(whole.grad[away]))


def test_a_resident_expert_is_chosen_before_one_that_is_away_even_at_probability_zero():
    moe = sparse_moe()
    moe.view(2, torch.tensor([False, True, False, False, True]))
    # Expert 4's probability underflows to 0, which is also the probability of those that are away.
    weight = torch.zeros(M, D)
    weight[1], weight[4] = 100.0, -100.0
    moe.router.weight.data = weight
    routing = moe.router(torch.ones(1, D), 2, moe.resident, "detached")
    assert routing.expert_ids_TK.tolist() == [[1, 4]]


def test_a_view_is_undone_by_the_next():
    moe, x = sparse_moe(), tokens()
    expected = moe(x)
    moe.view(1, torch.arange(M) == 3)
    assert not torch.equal(moe(x), expected)
    moe.view(K)
    assert torch.equal(moe(x), expected)
    assert "resident" not in moe.state_dict()


def test_a_block_without_experts_adds_exactly_nothing():
    moe = sparse_moe()
    moe.load_experts(torch.empty(0, D), torch.empty(0, H, D), torch.empty(0, H, D), 2)
    assert torch.equal(moe(tokens()), torch.zeros(T, D))
    assert moe.num_experts == 0


def test_loaded_experts_are_copies_and_stay_trainable():
    moe = sparse_moe()
    router, up, down = torch.randn(3, D), torch.randn(3, H, D), torch.randn(3, H, D)
    before = up.clone()
    moe.load_experts(router, up, down, 1)
    with torch.no_grad():
        moe.up.zero_()
    assert torch.equal(up, before)
    assert all(p.requires_grad for p in moe.parameters())
    moe.requires_grad_(False)
    moe.load_experts(router, up, down, 1)
    assert not any(p.requires_grad for p in moe.parameters())


def test_more_experts_per_token_than_residents_is_refused_with_both_numbers():
    moe = sparse_moe()
    with pytest.raises(InputError, match="top_k=4 with 3 resident experts"):
        moe.load_experts(torch.zeros(3, D), torch.zeros(3, H, D), torch.zeros(3, H, D), 4)
    with pytest.raises(InputError, match="top_k=2 with 1 resident expert;"):
        moe.view(2, torch.arange(M) == 1)
    with pytest.raises(InputError, match="top_k=6 with 5 resident experts"):
        SparseMoe(M, H, D, 6, generator(0))


def test_experts_of_another_shape_are_refused():
    with pytest.raises(InputError, match="do not fit a block with expert_dim=3 and model dim=7"):
        sparse_moe().load_experts(torch.zeros(2, D), torch.zeros(2, D, H), torch.zeros(2, H, D), 1)
    with pytest.raises(InputError, match="bool mask of 5 experts"):
        sparse_moe().view(1, torch.ones(M))


def test_the_router_stays_float32_under_autocast():
    moe, x = sparse_moe(), tokens()
    expected = moe.router(x, K, None, "detached")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = moe.router(x, K, None, "detached")
        y = moe(x)
    assert routing.logits_TM.dtype == torch.float32
    assert torch.equal(routing.logits_TM, expected.logits_TM)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("compute", ["loop", "wide", "grouped"])
def test_every_compute_runs_under_autocast_and_next_to_a_bfloat16_backbone(compute: str):
    moe = SparseMoe(M, 8, 16, K, generator(0), compute=compute)
    torch.nn.init.normal_(moe.down, generator=generator(1))
    x = torch.randn(T, 16, generator=generator(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = moe(x)
    assert autocast.dtype == moe(x.bfloat16()).dtype == torch.bfloat16
    autocast.float().sum().backward()
    assert moe.up.grad is not None
    assert moe.up.grad.dtype == torch.float32
    # bfloat16 keeps 8 bits: 2^-8 relative to sums of about 8 terms.
    torch.testing.assert_close(autocast.float(), moe(x), rtol=0.1, atol=0.1)


def test_scale_multiplies_the_output():
    moe, x = sparse_moe(), tokens()
    once = moe(x)
    moe.scale = 3.0
    torch.testing.assert_close(moe(x), 3 * once)
