"""FlexLoRA, which divides the sum of the clients' products by singular values; against numpy's SVD."""

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fftmoe.methods.flexlora import FlexLora, split_product
from fftmoe.rng import generator
from lora_rounds import (
    BUDGETS,
    MODULES,
    NARROW,
    ONE,
    merged_round,
    plan_of,
    product_of,
    random_update,
    random_updates,
    seeds,
    state_of,
    sum_of_products,
)


@given(seed=seeds)
@settings(max_examples=10)
def test_flexlora_sends_each_client_the_truncated_svd_of_the_sum(seed: int):
    method = FlexLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = random_updates(method, state, seed)
    new = merged_round(method, state, updates)
    for path in MODULES:
        u, s, vh = np.linalg.svd(sum_of_products(method, state, updates, path), full_matrices=False)
        for client_id, budget in BUDGETS.items():
            r = budget.rank
            sent = method.download(new, plan_of(method, new, client_id))
            if path == ONE and budget is NARROW:
                assert f"lora.{path}.A" not in sent
                continue
            expected = (u[:, :r] * s[:r]) @ vh[:r]
            np.testing.assert_allclose(product_of(sent, path), expected, rtol=0, atol=1e-5 * s[0])
            # The singular values are divided evenly.
            norms = sent[f"lora.{path}.A"].norm(dim=1), sent[f"lora.{path}.B"].norm(dim=0)
            np.testing.assert_allclose(norms[0], np.sqrt(s[:r]), rtol=1e-4)
            np.testing.assert_allclose(norms[1], np.sqrt(s[:r]), rtol=1e-4)


def test_flexlora_can_go_on_training_components_that_are_zero():
    method = FlexLora(BUDGETS, MODULES)
    state = method.init(nn.Module())
    first = {name: t.clone() for name, t in state.tensors.items()}
    silent = random_update(method, state, 0)
    silent = dataclasses.replace(silent, tensors={n: 0 * t for n, t in silent.tensors.items()})
    unmoved = merged_round(method, state, [silent])
    assert all(torch.equal(unmoved.tensors[name], t) for name, t in first.items())
    # One client of rank 2: the sum has two components, the other three keep the first A and a zero B.
    update = random_update(method, state, 0)
    new = merged_round(method, state, [update])
    a, b = new.tensors[f"lora.{ONE}.A"], new.tensors[f"lora.{ONE}.B"]
    assert torch.equal(a[2:], first[f"lora.{ONE}.A"][2:])
    assert not b[:, 2:].any()
    np.testing.assert_allclose(product_of(new.tensors, ONE), sum_of_products(method, state, [update], ONE), atol=1e-5)


@given(rank=st.integers(1, 12), held=st.integers(1, 30), seed=seeds)
@settings(max_examples=25)
def test_a_split_product_is_the_best_of_its_rank(rank: int, held: int, seed: int):
    """Stacks thinner and thicker than the matrix, against numpy's SVD of the dense product."""
    source = generator(seed)
    a, b = torch.randn(held, 7, generator=source).double(), torch.randn(11, held, generator=source).double()
    split_a, split_b = split_product(a, b, rank)
    u, s, vh = np.linalg.svd((b @ a).numpy())
    r = min(rank, held, 7)
    assert split_a.shape == (r, 7)
    np.testing.assert_allclose(split_b @ split_a, (u[:, :r] * s[:r]) @ vh[:r], rtol=0, atol=1e-10 * s[0])
