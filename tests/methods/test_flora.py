"""FLoRA, which adds the exact sum of the clients' products to the backbone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation import answers
from fftmoe.backbones.lora import lora_modules
from fftmoe.methods.flora import FLora, stack_factors
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from lora_rounds import (
    BUDGETS,
    LARGE,
    MODULES,
    ONE,
    SCALE,
    SMALL,
    TRAINING,
    TWO,
    dense_merged,
    merged_round,
    method_on,
    plan_of,
    random_update,
    seeds,
    state_of,
    sum_of_products,
    train,
)

CLIENTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 99)), min_size=1, max_size=5)  # rank, examples


@given(clients=CLIENTS, seed=seeds)
@settings(max_examples=25)
def test_a_stack_is_the_weighted_sum_of_products_exactly_and_in_any_order(clients: list[tuple[int, int]], seed: int):
    source = generator(seed)
    parts = [
        (n, torch.randn(r, 7, generator=source).double(), torch.randn(11, r, generator=source).double())
        for r, n in clients
    ]
    total = sum(n for n, _, _ in parts)
    expected = sum(n / total * b.numpy() @ a.numpy() for n, a, b in parts)
    for order in (parts, parts[::-1]):
        a, b = stack_factors(order)
        assert a.shape == (sum(r for r, _ in clients), 7)
        np.testing.assert_allclose(b @ a, expected, rtol=0, atol=1e-12)


@given(seed=seeds)
@settings(max_examples=10)
def test_flora_merges_the_exact_sum_of_products_whatever_its_form(seed: int):
    """13 x 5 is dense from the first round on. 11 x 7 is larger than the factors of a client of rank 2 (36 numbers),
    and smaller than these and the factors of a client of rank 3 (90 numbers).
    """
    method = FLora(BUDGETS, MODULES)
    state, expected = state_of(method), dict.fromkeys(MODULES, 0.0)
    for cohort in ([0], [1], [0, 1, 2, 3]):
        updates = [random_update(method, state, c, seed) for c in cohort]
        expected = {p: expected[p] + sum_of_products(method, state, updates, p) for p in MODULES}
        state = merged_round(method, state, updates)
        forms = {name.removeprefix(f"merged.{ONE}.") for name in state.tensors if ONE in name}
        assert forms == ({"A", "B"} if cohort == [0] else {"W"})
        for path, product in expected.items():
            np.testing.assert_allclose(dense_merged(state.tensors, path), product, rtol=1e-5, atol=1e-5)  # float32
    assert set(method.download(state, plan_of(method, state, 3))) == {"head.weight", f"merged.{TWO}.W"}


def test_flora_clients_begin_each_round_anew_and_alike():
    method = FLora(BUDGETS, MODULES, seed=4)
    first, second = method.start({}, SMALL, round=1), method.start({}, SMALL, round=2)
    assert torch.equal(method.start({}, LARGE, round=1)[ONE][0][:2], first[ONE][0])
    assert not torch.equal(first[ONE][0], second[ONE][0])
    assert not second[ONE][1].any()


@pytest.mark.parametrize("cohort", [[0], [0, 1, 2, 3]])  # factors, and dense
def test_what_flora_merged_changes_the_backbone_by_exactly_that(
    lora_model: Any, cohort: list[int], fresh_lora_model: Callable[[], Any]
):
    """Against a backbone whose weights are changed by hand, and against what the next client begins with."""
    method = method_on(lora_model, FLora)
    initial = method.init(lora_model)
    plan = plan_round(method, initial, 1, cohort, BUDGETS, TRAINING, seed=5)
    updates = [train(lora_model, method, initial, c)[0] for c in cohort]
    state, _ = apply_round(method, initial, plan, updates)
    assert any(name.endswith(".W") for name in state.tensors) is (len(cohort) > 1)
    by_hand = fresh_lora_model()
    for path in lora_modules(lora_model):
        holders = [u for u in updates if f"lora.{path}.A" in u.tensors]
        total = sum(u.num_examples for u in holders)
        weight = by_hand.base_model.model.get_submodule(path).get_base_layer().weight
        for update in holders:
            start = method.start({}, BUDGETS[update.client_id], round=1)[path][0]
            a, b = start + update.tensors[f"lora.{path}.A"], update.tensors[f"lora.{path}.B"]
            weight.data += SCALE * update.num_examples / total * b @ a
    method.install(by_hand, {name: t for name, t in state.tensors.items() if name.startswith("head.")}, LARGE)
    expected = answers(by_hand)
    method.install(lora_model, state.tensors, LARGE)
    torch.testing.assert_close(answers(lora_model), expected)
    plan_next = plan_of(method, state, 2)
    with method.session(lora_model, plan_next, method.download(state, plan_next), {}):
        torch.testing.assert_close(answers(lora_model), expected)
    method.install(lora_model, initial.tensors, LARGE)
    assert not torch.allclose(answers(lora_model), expected)
