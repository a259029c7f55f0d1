"""What a budget costs by the shape of an expert, worked by hand."""

import pytest

from fftmoe.cost.analytic import adapter_cost, budget_order, tokens_per_round, training_bytes
from fftmoe.methods.budget import ExpertShape
from fftmoe.records import Budget, Training

SHAPE = ExpertShape(dim=7, expert_dim=3)  # 2 * 3 * 7 + 7 = 49 parameters an expert


def test_a_budget_costs_what_its_experts_cost_in_every_block():
    cost = adapter_cost(Budget("b", 2, 5, (4, 6)), SHAPE, "float32")
    assert cost.parameters == 2 * 5 * 49
    assert cost.training_bytes == 16 * 2 * 5 * 49  # weights, gradients, and two moments, of 4 bytes each
    assert cost.bytes_up == 4 * 2 * 5 * 49
    # In a block: 5 router products of 7, and 2 experts of two products of 3 x 7; 2 FLOPs each, in three passes.
    assert cost.flops_per_token == 2 * 3 * 2 * (5 * 7 + 2 * (2 * 3 * 7))


def test_what_all_clients_share_counts_once_in_every_block():
    shared = ExpertShape(dim=7, expert_dim=3, shared_dim=2, projections=11)
    experts_only, both = (adapter_cost(Budget("b", 1, 5, (4, 6)), shape, "float32") for shape in (SHAPE, shared))
    assert both.parameters - experts_only.parameters == 2 * (2 * 2 * 7 + 11)


@pytest.mark.parametrize(("upload", "smaller"), [("bfloat16", 0.5), ("int8", 0.5)])
def test_an_upload_in_fewer_bits_is_smaller_and_takes_no_less_memory(upload: str, smaller: float):
    budget, wide = Budget("b", 2, 5, (4, 6)), ExpertShape(dim=512, expert_dim=3)
    plain, rounded = adapter_cost(budget, wide, "float32"), adapter_cost(budget, wide, upload)
    assert rounded.bytes_up <= smaller * plain.bytes_up
    assert rounded.training_bytes == plain.training_bytes == training_bytes(plain.parameters)


def test_tokens_of_a_round_follow_from_its_steps_or_from_its_epochs():
    steps = Training(batch_size=5, learning_rate=0.1, head_learning_rate=0.1, local_steps=3)
    epochs = Training(batch_size=5, learning_rate=0.1, head_learning_rate=0.1, local_epochs=2)
    assert tokens_per_round(steps, num_examples=40, mean_tokens=6.5) == 98  # 15 examples, 97.5 tokens
    assert tokens_per_round(epochs, num_examples=40, mean_tokens=6.5) == 520
    assert tokens_per_round(epochs, num_examples=0.01, mean_tokens=1.0) == 1


def test_more_blocks_come_before_more_experts_and_these_before_a_larger_top_k():
    ordered = [Budget("b", 9, 9, (6,)), Budget("b", 3, 4, (5, 6)), Budget("b", 1, 5, (5, 6)), Budget("b", 2, 5, (5, 6))]
    assert sorted(reversed(ordered), key=budget_order) == ordered
