"""What the shared low-rank update of query and value costs a tier: parameters, memory, uplink and FLOPs."""

import copy
import dataclasses
from typing import Any

import pytest

from fftmoe import adapter
from fftmoe.backbones import (
    attach_adapter,
)
from fftmoe.config import Recipe, parse_recipe
from fftmoe.errors import InputError
from fftmoe.methods.budget import BYTES_PER_PARAMETER, MIB, TRAINING_COPIES, ExpertShape, Limits, resolve
from fftmoe.records import (
    Budget,
)
from fftmoe.setup.method import expert_shape, fit_budgets, pool_size, stated_shape
from fftmoe.setup.model import build_model
from models import FAMILIES, HIDDEN, NUM_BLOCKS
from shared_updates import BLOCKS, H, M, R, config, every_family, of_block

PROJECTIONS = 2 * R * (HIDDEN + HIDDEN)


@every_family
def test_parameters_are_counted_before_and_after_attaching(family: str):
    backbone = FAMILIES[family].make()
    forecast = {block: adapter.projection_parameters(backbone, block, R) for block in range(NUM_BLOCKS)}
    model = attach_adapter(backbone, config())
    for block, expected in forecast.items():
        assert sum(p.numel() for p in of_block(model, block)) == expected > 0
        assert adapter.projection_parameters(model.get_base_model(), block, R) == expected
    # The value of decoders with one key for two heads is narrower than their query: one head of 10 for two.
    width = HIDDEN // 2 if getattr(backbone.config, "num_key_value_heads", 2) == 1 else HIDDEN
    assert forecast[0] == R * (HIDDEN + HIDDEN) + R * (HIDDEN + width)


def test_they_cost_what_is_shared_and_no_expert_costs_more():
    plain = ExpertShape(HIDDEN, H, 2)
    shape = dataclasses.replace(plain, projections=PROJECTIONS)
    assert PROJECTIONS == 160
    assert shape.shared_parameters == 2 * 2 * HIDDEN + 160 == 240
    assert shape.parameters == plain.parameters == 2 * H * HIDDEN + HIDDEN == 140
    assert shape.block_parameters(M) == M * 140 + 240
    assert shape.flops_per_token(2, M) - plain.flops_per_token(2, M) == 6 * PROJECTIONS
    # 2 blocks, 4 bytes, 4 copies in memory; what is shared is paid for first.
    for experts in (1, 3):
        for spare, expected in ((0, experts), (139, experts), (140, experts + 1)):
            size = 2 * BYTES_PER_PARAMETER * (shape.block_parameters(experts) + spare) / MIB
            for limits in (
                Limits(name="tier", fraction=1.0, top_k=1, memory_mib=TRAINING_COPIES * size),
                Limits(name="tier", fraction=1.0, top_k=1, uplink_mib=size),
            ):
                tier = resolve(limits, shape=shape, num_experts=M, blocks=(1, 2), tokens_per_round=1000)
                assert tier.experts == expected
    limits = Limits(name="tier", fraction=1.0, top_k=1, uplink_mib=2 * BYTES_PER_PARAMETER * (140 + 239) / MIB)
    with pytest.raises(InputError, match=r"adapter\.shared_rank"):
        resolve(limits, shape=shape, num_experts=M, blocks=(1, 2), tokens_per_round=1000)


def recipe(recipe_values: dict[str, Any], method: str, **changes: Any) -> Recipe:
    values = copy.deepcopy(recipe_values) | {"method": method, "evaluation": {"baselines": "off"}}
    values["adapter"] |= {"shared_dim": 2, "shared_rank": 3} | changes
    return parse_recipe(values, "tiny")


LABELS = ("blue", "green", "red")


def test_a_recipes_shape_is_what_its_model_holds(recipe_values: dict[str, Any]):
    chosen = recipe(recipe_values, "fft-moe")
    model = build_model(chosen, LABELS)
    shape = expert_shape(chosen, model.get_base_model())
    assert shape == ExpertShape(HIDDEN, 4, 2, 2 * 3 * 2 * HIDDEN)
    for block, moe in adapter.blocks(model).items():
        counted = sum(p.numel() for p in moe.parameters()) + sum(p.numel() for p in of_block(model, block))
        assert counted == shape.block_parameters(5)
    assert len(adapter.shared_projections(model)) == 8
    assert stated_shape(chosen, model.get_base_model(), shared=False) == ExpertShape(HIDDEN, 4)
    assert pool_size(chosen, model.get_base_model()) == 5
    lora = recipe(recipe_values, "fedit")
    assert expert_shape(lora, build_model(lora, LABELS).get_base_model()) == shape


def test_flames_pool_is_what_the_smallest_tier_holds_with_its_shared_parts(recipe_values: dict[str, Any]):
    # An expert has 2*4*20 + 20 = 180; the smallest tier two of them, and shared 2*2*20 = 80 and 2*3*40 = 240.
    for changes, pool in (
        ({}, 3),  # 680 / 180
        ({"shared_rank": 0}, 2),  # 440 / 180
        ({"shared_dim": 0}, 3),  # 600 / 180
        ({"shared_dim": 0, "shared_rank": 0}, 2),
    ):
        chosen = recipe(recipe_values, "flame", **changes)
        model = build_model(chosen, LABELS)
        assert adapter.shared_projections(model) == {}
        assert all(moe.num_experts == pool and moe.shared_up is None for moe in adapter.blocks(model).values())
        assert pool_size(chosen, model.get_base_model()) == pool
        tiers = (Budget("small", 1, 2, BLOCKS), Budget("large", 5, 5, BLOCKS))
        fitted = fit_budgets(chosen, model, tiers, expert_shape(chosen, model.get_base_model()))
        assert [(tier.experts, tier.top_k) for tier in fitted] == [(pool, 1), (pool, pool)]
