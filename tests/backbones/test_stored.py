"""Frozen weights stay in the number format of their checkpoint, and no result changes by that."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.bound import check_base, describe_base
from fftmoe.backbones import attach_adapter, fingerprint, load_backbone, outputs, place, token_losses
from fftmoe.backbones.prefix import enable_resume, prefix_states
from fftmoe.errors import InputError
from language import save_language_model
from models import FAMILIES, tokens

CPU, HALF = torch.device("cpu"), torch.bfloat16
IDS = torch.arange(5 * 7).view(5, 7) % 13
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def stored(folder: Path, family: str, dtype: torch.dtype = HALF, **changes: Any) -> Path:
    """A checkpoint in `dtype` with numbers that bfloat16 can hold."""
    save_language_model(folder, family)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if changes:
        config = model.config
        config.update(changes)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(HALF).to(dtype).save_pretrained(folder)
    return folder


def loaded(folder: Path, multiplies_in: torch.dtype) -> Any:
    backbone = load_backbone(str(folder), task="causal-lm", multiplies_in=multiplies_in)
    adapter = MoeAdapterConfig(num_experts=5, expert_dim=3, top_k=2, shared_rank=2, shared_targets="all-linear", seed=7)
    return place(attach_adapter(backbone, adapter), CPU, HALF)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_kept_weights_give_the_bits_of_float32_copies(tmp_path: Path, family: str, tied: bool):
    folder = stored(tmp_path / "model", family, tie_word_embeddings=tied)
    copies, kept = loaded(folder, torch.float32), loaded(folder, HALF)
    found: list[torch.Tensor] = []
    for model in (copies, kept):
        losses = outputs(model, BATCH, next_token=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        losses.sum().backward(inputs=trained)
        assert {p.dtype for p in trained} == {torch.float32}
        found += [losses.detach(), torch.cat([p.grad.flatten() for p in trained if p.grad is not None])]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_a_batch_goes_on_from_cached_states_as_if_from_the_beginning(tmp_path: Path):
    backbone = load_backbone(str(stored(tmp_path / "model", "llama")), task="causal-lm", multiplies_in=HALF)
    model = place(attach_adapter(backbone, MoeAdapterConfig(num_experts=5, expert_dim=3, blocks=[1, 2])), CPU, HALF)
    whole = outputs(model, BATCH, next_token=True)
    states = prefix_states(model, 1, BATCH)
    enable_resume(model, 1)
    assert torch.equal(outputs(model, {**BATCH, "prefix_states": states}, next_token=True), whole)


def test_products_are_kept_and_nothing_else(tmp_path: Path):
    kept = load_backbone(str(stored(tmp_path / "model", "llama")), task="causal-lm", multiplies_in=HALF)
    linear = {id(m.weight) for m in kept.modules() if isinstance(m, nn.Linear)}
    assert {p.dtype for p in kept.parameters() if id(p) in linear} == {HALF}
    assert {p.dtype for p in kept.parameters() if id(p) not in linear} == {torch.float32}


@pytest.mark.parametrize(("dtype", "multiplies_in"), [(torch.float32, HALF), (torch.float16, HALF), (HALF, None)])
def test_what_would_lose_bits_is_float32(tmp_path: Path, dtype: torch.dtype, multiplies_in: torch.dtype | None):
    folder = stored(tmp_path / "model", "llama", dtype)
    model = load_backbone(str(folder), task="causal-lm", multiplies_in=multiplies_in or torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_trained_head_on_a_stored_checkpoint_is_float32(tmp_path: Path):
    folder = str(stored(tmp_path / "model", "llama"))
    for pooling in ("mean", "native"):
        model: Any = load_backbone(folder, num_labels=3, pooling=pooling, multiplies_in=HALF)
        head = model.classifier if pooling == "mean" else model.score
        assert {p.dtype for p in head.parameters()} == {torch.float32}
        place(model, CPU, HALF)
        assert outputs(model, {**BATCH, "labels": IDS[:, 0]}, next_token=False).isfinite().all()


def test_both_ways_of_keeping_are_the_same_backbone(tmp_path: Path):
    folder = stored(tmp_path / "model", "llama")
    copies, kept = loaded(folder, torch.float32), loaded(folder, HALF)
    assert fingerprint(copies) == fingerprint(kept)
    for written, read in ((copies, kept), (kept, copies)):
        check_base(describe_base(written), read, "a folder")


def test_other_weights_are_found_whichever_way_they_are_kept(tmp_path: Path):
    folder, other = stored(tmp_path / "model", "llama"), tmp_path / "other"
    changed: Any = transformers.AutoModelForCausalLM.from_pretrained(stored(other, "llama"), dtype=HALF)
    changed.model.layers[1].mlp.up_proj.weight.data[2, 3] += 1
    changed.save_pretrained(other)
    for written in (torch.float32, HALF):
        base = describe_base(loaded(folder, written))
        # A checkpoint of float32 numbers may have been rounded to 16 bits by whoever loads it: that cannot be told.
        for read in (torch.float32, written):
            with pytest.raises(InputError, match="other weights"):
                check_base(base, loaded(other, read), "a folder")


def test_weights_that_a_user_rounded_pass(tmp_path: Path):
    folder = tmp_path / "model"
    save_language_model(folder)
    base = describe_base(loaded(folder, torch.float32))
    rounded = load_backbone(str(folder), task="causal-lm", dtype=HALF)
    check_base(base, rounded, "a folder")


DECODERS = (
    "bloom falcon gemma gemma2 gemma3_text gpt2 gpt_neox llama mistral olmo2 phi phi3 qwen2 qwen2_moe qwen3 smollm3"
).split()


@pytest.mark.parametrize("family", DECODERS)
def test_no_family_of_language_models_gets_other_losses(tmp_path: Path, family: str):
    config: Any = FAMILIES[family].make().config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = transformers.AutoModelForCausalLM.from_config(config)
    made.to(HALF).save_pretrained(tmp_path)
    batch = {**tokens(), "labels": tokens()["input_ids"]}
    found = [
        token_losses(
            place(load_backbone(str(tmp_path), task="causal-lm", multiplies_in=kept), CPU, HALF),
            batch,
        )
        for kept in (torch.float32, HALF)
    ]
    assert torch.equal(*found)
