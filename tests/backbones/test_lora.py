"""peft's LoRA as the methods use it: factors of any rank, products merged into the weights, and saved folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fftmoe.adapter.low_rank import TARGETS, block_of_module, target_names
from fftmoe.backbones import attach_adapter, logits
from fftmoe.backbones.lora import load_factors, lora_config, lora_modules, merged
from fftmoe.errors import InputError
from fftmoe.rng import generator
from lora_rounds import BLOCKS, SCALE, check_saved
from models import FAMILIES


def test_factors_of_any_rank_add_scale_times_their_product(lora_model: Any):
    source = generator(2)
    path = "backbone.encoder.layer.1.attention.self.query"
    assert list(lora_modules(lora_model)) == [
        f"backbone.encoder.layer.{block}.{end}"
        for block in BLOCKS
        for end in ("attention.self.query", "intermediate.dense")
    ]
    layer = lora_model.base_model.model.get_submodule(path)
    x = torch.randn(3, 20, generator=source)
    for rank in (5, 2, 0, 3):
        a, b = torch.randn(rank, 20, generator=source), torch.randn(20, rank, generator=source)
        loaded = load_factors(lora_model, {path: (a, b)})
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + SCALE * x @ a.T @ b.T)
        assert set(loaded) == {path}
        assert loaded[path][0] is layer.lora_A["default"].weight
        assert loaded[path][0].requires_grad
    others = [m for m in lora_modules(lora_model) if m != path]
    assert all(lora_model.base_model.model.get_submodule(m).lora_A["default"].weight.shape[0] == 0 for m in others)


def test_one_string_of_target_modules_would_ignore_the_blocks():
    with pytest.raises(InputError, match="list the endings"):
        lora_config(1, 1.0, "query", BLOCKS)
    with pytest.raises(InputError, match=r"'pooler\.dense' is in no numbered block"):
        block_of_module("pooler.dense")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft finds GPT-2's transposed weights itself
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("targets", TARGETS)
def test_merging_a_product_is_the_same_as_loading_its_factors(family: str, targets: str):
    """In every family, GPT-2's transposed weights included; afterwards the weights are what they were."""
    tiny = FAMILIES[family]
    backbone = tiny.make()
    model = attach_adapter(backbone, lora_config(1, SCALE, target_names(backbone, [0, 2], targets)))
    modules = lora_modules(model)
    assert {block_of_module(path) for path in modules} == {0, 2}
    source = generator(6)
    factors = {
        path: (0.1 * torch.randn(3, i, generator=source), torch.randn(o, 3, generator=source))
        for path, (i, o) in modules.items()
    }
    load_factors(model, {})
    plain = logits(model, tiny.batch())
    with merged(model, {path: b @ a for path, (a, b) in factors.items()}):
        by_weight = logits(model, tiny.batch())
    assert torch.equal(logits(model, tiny.batch()), plain)
    load_factors(model, factors)
    torch.testing.assert_close(logits(model, tiny.batch()), by_weight, rtol=1e-4, atol=1e-5)  # three blocks of float32
    assert not torch.allclose(plain, by_weight, rtol=1e-3)


def test_targets_divide_a_block_into_attention_and_feed_forward():
    backbone = FAMILIES["bert"].make()
    names = {targets: target_names(backbone, [1], targets) for targets in TARGETS}
    prefix = "bert.encoder.layer.1."
    assert names["feed-forward"] == [f"{prefix}intermediate.dense", f"{prefix}output.dense"]
    assert names["attention"] == [
        f"{prefix}attention.{end}" for end in ("self.query", "self.key", "self.value", "output.dense")
    ]
    assert names["all-linear"] == names["attention"] + names["feed-forward"]
    with pytest.raises(InputError, match="did you mean 'attention'"):
        target_names(backbone, [1], "atention")
    with pytest.raises(InputError, match="hold no linear attention modules"):
        target_names(nn.Linear(2, 3), [1], "attention")


def test_a_saved_adapter_of_unlike_ranks_opens_with_peft_too(lora_model: Any, backbone_folder: Path, tmp_path: Path):
    source = generator(3)
    factors = {
        path: (torch.randn(rank, i, generator=source), torch.randn(o, rank, generator=source))
        for rank, (path, (i, o)) in enumerate(lora_modules(lora_model).items(), 1)
    }
    load_factors(lora_model, factors)
    check_saved(lora_model, backbone_folder, tmp_path)
