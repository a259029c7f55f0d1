"""Tests that messages are read as they were written, and that equal values give equal bytes."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    Experts,
    Tensors,
    Training,
    pack,
    pack_plan,
    pack_update,
    unpack,
    unpack_plan,
    unpack_update,
)
from fftmoe.rng import generator

D, H = 7, 3

# Any finite share, loss or learning rate must keep its bits.
numbers = st.floats(allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**63 - 1)
expert_ids = st.sets(st.integers(0, 100), max_size=5).map(lambda ids: tuple(sorted(ids)))
experts = st.dictionaries(st.integers(0, 23), expert_ids, max_size=3)
budgets = st.builds(
    Budget,
    name=st.text(max_size=5),
    top_k=st.integers(1, 9),
    experts=st.integers(1, 99),
    blocks=st.lists(st.integers(0, 23), max_size=3).map(tuple),
    rank=st.integers(0, 99),
)
trainings = st.builds(
    Training,
    batch_size=st.integers(1, 512),
    learning_rate=numbers,
    head_learning_rate=numbers,
    head_optimizer=st.sampled_from(["sgd", "adamw"]),
    train_head=st.booleans(),
    local_epochs=st.none() | st.integers(1, 9),
    local_steps=st.none() | st.integers(1, 9),
    group_by_length=st.booleans(),
    weight_decay=numbers,
    proximal=numbers,
    clip_gradients=st.none() | numbers,
    rate_factors=st.lists(st.floats(0.01, 1), max_size=5).map(tuple),
)


def tensors_of(held: Experts, seed: int) -> Tensors:
    """Make random tensors with the names and shapes of a message."""
    source = generator(seed, "message")
    tensors = {"head.weight": torch.randn(5, D, generator=source)}
    for block, ids in held.items():
        tensors[f"blocks.{block}.router"] = torch.randn(len(ids), D, generator=source)
        tensors[f"blocks.{block}.up"] = torch.randn(len(ids), H, D, generator=source)
    return tensors


def assert_equal_tensors(one: Tensors, two: Tensors) -> None:
    assert sorted(one) == sorted(two)
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype
        assert torch.equal(tensor, two[name]), name


@given(budgets, trainings, experts, seeds, st.integers(0, 10**6), st.sampled_from(["train", "alone", "sums"]))
@settings(deadline=None, max_examples=50)
def test_a_plan_is_read_as_it_was_written(
    budget: Budget, training: Training, held: Experts, seed: int, client_id: int, task: str
):
    plan = ClientPlan(3, client_id, seed, budget, held, training, task)
    tensors = tensors_of(held, 1)
    back, back_tensors = unpack_plan(pack_plan(plan, tensors))
    assert back == plan
    assert_equal_tensors(tensors, back_tensors)


@given(experts, experts, st.data(), st.dictionaries(st.text(max_size=5), numbers, max_size=3))
@settings(deadline=None, max_examples=50)
def test_an_update_is_read_as_it_was_written(held: Experts, preferences: Experts, data: Any, metrics: dict[str, float]):
    shares = {b: tuple(data.draw(st.lists(numbers, min_size=len(i), max_size=len(i)))) for b, i in held.items()}
    tensors = tensors_of(held, 2)
    update = ClientUpdate(5, 17, 113, tensors, held, shares, preferences, metrics)
    back = unpack_update(pack_update(update))
    assert (back.round, back.client_id, back.num_examples) == (5, 17, 113)
    assert (back.experts, back.shares, back.preferences, back.metrics) == (held, shares, preferences, metrics)
    assert_equal_tensors(tensors, back.tensors)


def test_the_default_task_of_a_plan_is_to_train():
    training = Training(batch_size=1, learning_rate=0.1, head_learning_rate=0.1, local_steps=1)
    plan = ClientPlan(1, 2, 3, Budget("a", 1, 1, (0,)), {}, training)
    assert unpack_plan(pack_plan(plan, {}))[0].task == "train"


def test_a_plan_states_a_bound_on_gradients_only_where_there_is_one():
    """A plan without one keeps the bytes that it had before the setting existed."""
    training = Training(batch_size=1, learning_rate=0.1, head_learning_rate=0.1, local_steps=1)
    for most in (None, 0.5):
        bounded = replace(training, clip_gradients=most)
        message = pack_plan(ClientPlan(1, 2, 3, Budget("a", 1, 1, (0,)), {}, bounded), {})
        assert (b"clip_gradients" in message) == (most is not None)
        assert unpack_plan(message)[0].training == bounded


def test_a_plan_states_factors_of_the_rates_only_where_there_are_any():
    training = Training(batch_size=1, learning_rate=0.1, head_learning_rate=0.1, local_steps=1)
    for factors in ((), (1.0, 0.5)):
        falling = replace(training, rate_factors=factors)
        message = pack_plan(ClientPlan(1, 2, 3, Budget("a", 1, 1, (0,)), {}, falling), {})
        assert (b"rate_factors" in message) == bool(factors)
        assert unpack_plan(message)[0].training == falling


def test_the_order_of_insertion_does_not_change_the_bytes():
    names = ["blocks.1.up", "head.weight", "blocks.0.router"]
    tensors = {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}
    header = {"a": 1, "b": {2: [3], 10: [4]}}
    reordered = {"b": {10: [4], 2: [3]}, "a": 1}
    assert pack(header, tensors) == pack(reordered, {name: tensors[name].clone() for name in reversed(names)})


def test_a_strided_tensor_gives_the_bytes_of_its_copy():
    strided = torch.arange(15.0).view(3, 5).T
    assert pack({}, {"x": strided}) == pack({}, {"x": strided.clone(memory_format=torch.contiguous_format)})


def test_different_values_give_different_bytes():
    tensors = {"x": torch.zeros(2)}
    assert pack({"a": 1}, tensors) != pack({"a": 2}, tensors)
    assert pack({"a": 1}, tensors) != pack({"a": 1}, {"x": torch.tensor([0.0, -0.0])})


def test_a_message_without_tensors_keeps_its_header():
    assert unpack(pack({"text": "naïve “quotes”\n", "none": None}, {})) == (
        {"text": "naïve “quotes”\n", "none": None},
        {},
    )
