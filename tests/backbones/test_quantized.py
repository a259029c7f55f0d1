"""Adapters next to weights of 8 and 4 bits. Needs the extra `quantized`, whose package takes seconds to import."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from decoders import PAD, VOCAB, texts
from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.backbones import attach_adapter, fingerprint, load_backbone, logits
from fftmoe.backbones.prefix import prefix_tensors
from fftmoe.backbones.prefix_cache import prefix_key
from fftmoe.backbones.quantize import check_quantization
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.rng import generator
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.compose import compose
from fftmoe.setup.run import run
from models import token_examples

KINDS = ("8bit", "4bit")
every_kind = pytest.mark.parametrize("kind", KINDS)


def installed() -> bool:
    try:
        return bool(importlib.metadata.version("bitsandbytes"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_it = pytest.mark.skipif(not installed(), reason="bitsandbytes is not installed (extra `quantized`)")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that 4 bits have whole blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=37,
                pad_token_id=PAD,
            )
        )
    model.save_pretrained(folder)
    return folder


def load(folder: Path, kind: str = "none", **options: Any) -> Any:
    return load_backbone(str(folder), task="causal-lm", quantization=kind, **options)


def attach(backbone: Any) -> PeftModel:
    model = attach_adapter(backbone, MoeAdapterConfig(num_experts=5, expert_dim=4, top_k=2))
    for block, moe in blocks(model).items():
        nn.init.normal_(moe.down, generator=generator(1, block))
    return model


def inputs() -> dict[str, Tensor]:
    return {name: value for name, value in texts(3, 7).items() if name != "labels"}


def test_without_the_package_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, recipe_values: dict[str, Any]):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", version)
        with pytest.raises(InputError, match=r"pip install 'fftmoe\[quantized\]'.*torchao, quanto, hqq"):
            load_backbone("/nowhere", task="causal-lm", quantization="4bit")
        missing = {"model": "/nowhere", "quantization": "8bit"}
        recipe = parse_recipe({**recipe_values, "backbone": missing, "data": {"source": "/nowhere"}}, "here")
        with pytest.raises(InputError, match=r"backbone\.quantization=8bit needs the package bitsandbytes"):
            compose(recipe)
        patch.setattr(importlib.metadata, "version", lambda name: "0.48.2")
        with pytest.raises(InputError, match=r"needs bitsandbytes 0.49 or later, but 0.48.2 is installed"):
            check_quantization("4bit")


def test_another_name_is_refused(recipe_values: dict[str, Any]):
    with pytest.raises(InputError, match="unknown quantization '4bits'; did you mean '4bit'"):
        check_quantization("4bits")
    with pytest.raises(InputError, match=r"backbone.quantization is '3bit'; did you mean '[48]bit'"):
        parse_recipe({**recipe_values, "backbone": {"model": "a", "quantization": "3bit"}}, "here")


@needs_it
@every_kind
def test_linear_layers_are_held_in_fewer_bits_and_compute_nearly_the_same(llama: Path, kind: str):
    backbone = load(llama, kind)
    up = backbone.get_submodule("model.layers.0.mlp.up_proj").weight
    assert up.dtype == (torch.int8 if kind == "8bit" else torch.uint8)
    assert up.numel() * up.itemsize == 64 * 128 // (1 if kind == "8bit" else 2)
    assert backbone.get_submodule("lm_head").weight.dtype == torch.float32
    exact = logits(load(llama), inputs())
    error = (logits(backbone, inputs()) - exact).abs().max() / exact.abs().max()
    # Two orders of magnitude of rounding: 1/127 of a row's largest weight, and 1/16 of a block's.
    assert 0 < error < (0.05 if kind == "8bit" else 0.3)


@needs_it
@every_kind
def test_gradients_reach_the_adapter_in_every_block_and_nothing_else(llama: Path, kind: str):
    model = attach(load(llama, kind))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits(model, inputs()).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    first = gradients()
    assert set(first) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".moe_experts." in name for name in first)
    assert all(gradient.abs().max() > 0 for gradient in first.values())
    with torch.no_grad():
        logits(model, inputs())  # after which bitsandbytes would cut the graph where a CPU knows bfloat16
    again = gradients()
    assert all(torch.equal(again[name], first[name]) for name in first)


@needs_it
@every_kind
def test_the_gradient_is_that_of_the_weights_as_they_were_rounded(llama: Path, kind: str):
    """Compared with the float model that has the rounded values: the adapter works next to quantised layers."""
    bnb: Any = importlib.import_module("bitsandbytes")
    backbone = load(llama, kind)
    rounded = load(llama)
    for name, module in backbone.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            value = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            value = module.weight.data.float() * module.weight.SCB[:, None] / 127
        else:
            continue
        rounded.get_submodule(name).weight.data = value
    found, expected = attach(backbone), attach(rounded)
    for model in (found, expected):
        logits(model, inputs()).square().mean().backward()
    # 8 bits round the inputs too, to 1/127 of a row's largest; 4 bits are the same product in another order.
    rtol = 0.2 if kind == "8bit" else 1e-3
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        if one.grad is not None and other.grad is not None:
            error = (one.grad - other.grad).norm() / other.grad.norm()
            assert error < rtol, f"{name}: {error}"


@needs_it
@every_kind
def test_the_adapter_is_saved_and_loaded_bit_for_bit(llama: Path, kind: str, tmp_path: Path):
    model = attach(load(llama, kind))
    expected = logits(model, inputs())
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(load(llama, kind), str(tmp_path))
    assert torch.equal(logits(again, inputs()), expected)
    with again.disable_adapter():
        assert torch.equal(logits(again, inputs()), logits(load(llama, kind), inputs()))


@needs_it
def test_each_way_of_holding_the_weights_has_its_own_fingerprint_and_cache(llama: Path):
    found = {kind: fingerprint(load(llama, kind)) for kind in ("none", *KINDS)}
    assert len(set(found.values())) == 3
    for kind in KINDS:
        used = load(llama, kind)
        with torch.no_grad():
            logits(used, inputs())
        assert fingerprint(used) == found[kind], "using a model changes its name"
        assert fingerprint(attach(load(llama, kind))) == found[kind]

    def key(kind: str, scale: float = 1.0) -> str:
        folder = llama
        if scale != 1.0:
            model = transformers.LlamaForCausalLM.from_pretrained(llama)
            model.get_parameter("model.layers.0.mlp.up_proj.weight").data *= scale
            folder = llama.parent / f"{llama.name}-{scale}"
            model.save_pretrained(folder)
        return prefix_key(load(folder, kind), 1, token_examples(5, 1))

    # Twice the weights have the same codes in 4 and 8 bits; only their scales differ.
    keys = [key(kind, scale) for kind in ("none", *KINDS) for scale in (1.0, 2.0)]
    assert len(set(keys)) == 6
    assert prefix_tensors(load(llama, "4bit"), 1).keys() >= {"model.embed_tokens.weight"}


@needs_it
@every_kind
def test_a_federation_runs_on_it(kind: str, recipe_values: dict[str, Any], tmp_path: Path):
    backbone = {**recipe_values["backbone"], "quantization": kind}
    recipe = parse_recipe({**recipe_values, "backbone": backbone}, "here")
    result = run(recipe, tmp_path / "run")
    assert result.summary["rounds_completed"] == 2
    assert evaluate_run(result.folder)["accuracy"] == pytest.approx(result.summary["accuracy"])


@needs_it
def test_flora_cannot_add_to_rounded_weights(recipe_values: dict[str, Any]):
    backbone = {**recipe_values["backbone"], "quantization": "8bit"}
    with pytest.raises(InputError, match="method flora adds what clients learned to the frozen weights"):
        compose(parse_recipe({**recipe_values, "backbone": backbone, "method": "flora"}, "here"))


@needs_it
@every_kind
def test_lora_trains_next_to_it(llama: Path, kind: str):
    model = attach_adapter(load(llama, kind), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    logits(model, inputs()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
