"""HetLoRA: factors of unlike ranks are padded with zeros and weighted by the norm of their product."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from fftmoe.methods.hetlora import HetLora, product_norm
from fftmoe.rng import generator
from lora_rounds import (
    BUDGETS,
    LARGE,
    MODULES,
    TWO,
    merged_round,
    numpy_factors,
    random_update,
    random_updates,
    seeds,
    state_of,
)


@given(seed=seeds)
@settings(max_examples=10)
def test_hetlora_pads_with_zeros_and_weighs_by_the_norm_of_products(seed: int):
    """An independent loop over dense products and padded arrays."""
    method = HetLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = random_updates(method, state, seed)
    new = merged_round(method, state, updates)
    factors = {u.client_id: numpy_factors(method, state, u) for u in updates}
    norms = {c: np.sqrt(sum(np.sum((b @ a) ** 2) for a, b in own.values())) for c, own in factors.items()}
    for path, (d_in, d_out) in MODULES.items():
        holders = [c for c in BUDGETS if path in factors[c]]
        a_new, b_new = np.zeros((5, d_in)), np.zeros((d_out, 5))
        for c in holders:
            a, b = factors[c][path]
            share = norms[c] / sum(norms[h] for h in holders)
            for row in range(a.shape[0]):
                a_new[row] += share * a[row]
                b_new[:, row] += share * b[:, row]
        np.testing.assert_allclose(new.tensors[f"lora.{path}.A"], a_new, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new.tensors[f"lora.{path}.B"], b_new, rtol=1e-5, atol=1e-6)


def test_hetlora_weights_sum_to_one_so_equal_clients_change_nothing():
    method = HetLora(dict.fromkeys(BUDGETS, LARGE), MODULES)
    state = state_of(method)
    updates = random_updates(method, state)
    still = [dataclasses.replace(u, tensors={n: 0 * t for n, t in u.tensors.items()}) for u in updates]
    new = merged_round(method, state, still)
    for name, old in state.tensors.items():
        torch.testing.assert_close(new.tensors[name], old)


def test_hetlora_leaves_rows_that_nobody_of_the_cohort_holds():
    method = HetLora(BUDGETS, MODULES)
    state = state_of(method)
    new = merged_round(method, state, [random_update(method, state, c) for c in (0, 1)])
    for path in MODULES:
        a, b, old_a, old_b = (s.tensors[f"lora.{path}.{f}"] for s in (new, state) for f in "AB")
        assert torch.equal(a[3:], old_a[3:])
        assert torch.equal(b[:, 3:], old_b[:, 3:])
        assert not torch.isclose(a[:3], old_a[:3]).any()


def test_hetlora_falls_back_to_equal_weights_where_every_product_is_zero():
    method = HetLora(BUDGETS, MODULES)
    state = method.init(nn.Module())  # B = 0
    updates = random_updates(method, state)
    updates = [
        dataclasses.replace(u, tensors={n: 0 * t if n.endswith(".B") else t for n, t in u.tensors.items()})
        for u in updates
    ]
    new = merged_round(method, state, updates)
    starts = [numpy_factors(method, state, u)[TWO][0] for u in updates]
    np.testing.assert_allclose(new.tensors[f"lora.{TWO}.A"][:2], sum(a[:2] for a in starts) / 4, atol=1e-6)
    assert not new.tensors[f"lora.{TWO}.B"].any()


def test_the_norm_of_a_product_needs_no_product():
    source = generator(0)
    factors = {
        p: (torch.randn(3, i, generator=source), torch.randn(o, 3, generator=source)) for p, (i, o) in MODULES.items()
    }
    dense = sum(float((b @ a).square().sum()) for a, b in factors.values()) ** 0.5
    assert product_norm(factors) == pytest.approx(dense, rel=1e-5)  # float32
    assert product_norm({}) == 0.0
