"""The rules that LoRA and the shared updates have in common: which layers, how many parameters, where they start."""

import pytest
import torch

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.low_rank import (
    block_of_module,
    initial_a,
    initial_b,
    initial_shared_a,
    linear_layers,
    parameters_per_rank,
    truncate,
    within_block,
)
from fftmoe.backbones import attach_adapter
from fftmoe.exports.fit import bare
from fftmoe.rng import generator
from models import FAMILIES, FUSED, NUM_BLOCKS

# PEFT 0.21 reads an attribute that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_a_path_has_a_block_and_a_part_below_it():
    path = "bert.encoder.layer.12.attention.self.query"
    assert block_of_module(path) == 12
    assert within_block(path) == "attention.self.query"


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        (family, targets)
        for family in sorted(FAMILIES)
        for targets in ("query-value", "all-linear", "feed-forward")
        if targets != "query-value" or family not in FUSED
    ],
)
def test_an_adapter_changes_neither_which_layers_are_found_nor_their_order(family: str, targets: str):
    backbone = FAMILIES[family].make()
    before = list(linear_layers(backbone, range(1, NUM_BLOCKS), targets))
    config = MoeAdapterConfig(num_experts=3, expert_dim=2, shared_rank=2, shared_targets="all-linear")
    after = linear_layers(attach_adapter(backbone, config), range(1, NUM_BLOCKS), targets)
    assert [bare(path) for path in after] == before != []


def test_the_two_first_a_differ_in_nothing_but_rounding():
    a, shared_a = (draw(3, 20, generator(5)) for draw in (initial_a, initial_shared_a))
    torch.testing.assert_close(a, shared_a, rtol=1e-6, atol=0)
    assert float(a.abs().max()) <= 20**-0.5
    assert not initial_b(3, 7).any()
    assert initial_b(3, 7).shape == (7, 3)


def test_parameters_at_rank_one_are_counted_for_each_factor():
    sizes = [(5, 7), (11, 13)]
    assert parameters_per_rank(sizes) == 5 + 7 + 11 + 13
    assert parameters_per_rank(sizes, "A") == 5 + 11
    assert parameters_per_rank(sizes, "B") == 7 + 13


def test_a_smaller_rank_keeps_the_first_rows_of_a_and_columns_of_b():
    a, b = torch.arange(15.0).view(3, 5), torch.arange(21.0).view(7, 3)
    assert torch.equal(truncate(a, "A", 2), a[:2])
    assert torch.equal(truncate(b, "B", 2), b[:, :2])
    assert truncate(b, "B", 2).is_contiguous()
