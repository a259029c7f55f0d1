"""Neither what fills a batch nor the other texts in it change an answer, whatever token a tokenizer pads with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone, readable_tokens
from fftmoe.rng import generator

VOCAB, LONGEST = 31, 11
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
BERTS = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 37, "initializer_range": 0.3}
DECODERS = {**BERTS, "num_key_value_heads": 1, "head_dim": 10, "bos_token_id": 3}
GPT = {"vocab_size": VOCAB, "n_embd": 20, "n_layer": 2, "n_head": 2, "n_positions": 37, "initializer_range": 0.3}
# The padding token that the configuration names: one, none, or one that does not exist.
CONFIGS: dict[str, Any] = {
    "llama-2": lambda: transformers.LlamaConfig(**DECODERS, pad_token_id=2, eos_token_id=2),
    "llama-none": lambda: transformers.LlamaConfig(**DECODERS, pad_token_id=None, eos_token_id=[5, 2]),
    "llama--1": lambda: transformers.LlamaConfig(**DECODERS, pad_token_id=-1, eos_token_id=2),
    "llama-neither": lambda: transformers.LlamaConfig(**DECODERS, pad_token_id=None, eos_token_id=None),
    "qwen3-0": lambda: transformers.Qwen3Config(**DECODERS, pad_token_id=0, eos_token_id=2),
    "gpt2-none": lambda: transformers.GPT2Config(**GPT, pad_token_id=None, bos_token_id=3, eos_token_id=2),
    "gpt2-99": lambda: transformers.GPT2Config(**GPT, pad_token_id=99, bos_token_id=3, eos_token_id=2),
    "roberta-1": lambda: transformers.RobertaConfig(**BERTS, pad_token_id=1),
    "bert-0": lambda: transformers.BertConfig(**BERTS, pad_token_id=0),
}
CELLS = [*((name, "native") for name in CONFIGS), ("roberta-1", "mean"), ("llama--1", "mean")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """Every configuration with both poolings, in float64, in which rounding is far below what a wrong token changes."""
    made = {}
    for name, make in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            transformers.AutoModel.from_config(make()).save_pretrained(folder)
        for pooling in {own for model, own in CELLS if model == name}:
            made[name, pooling] = load_backbone(str(folder), num_labels=3, pooling=pooling).double()
    return made


def padded(texts: list[list[int]], pad: int, side: str = "right") -> dict[str, Tensor]:
    width = max(map(len, texts))
    filled = [[pad] * (width - len(text)) for text in texts]
    masks = [[0] * len(own) for own in filled]
    rows, kept = zip(
        *[
            (text + own, [1] * len(text) + mask) if side == "right" else (own + text, mask + [1] * len(text))
            for text, own, mask in zip(texts, filled, masks, strict=True)
        ],
        strict=True,
    )
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(kept)}


def scores(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        found = model(**batch)
    return found if isinstance(found, Tensor) else found.logits


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=LONGEST)


@pytest.mark.parametrize(("name", "pooling"), CELLS)
@settings(max_examples=20)
@given(texts=st.lists(tokens, min_size=1, max_size=5), pad=st.integers(0, VOCAB - 1))
def test_a_text_has_one_answer_in_every_batch(
    models: dict[tuple[str, str], Any], name: str, pooling: str, texts: list[list[int]], pad: int
):
    """Of any tokens, also the padding token itself; a sum of 37 terms of about 1 in another order differs by 1e-14."""
    model = models[name, pooling]
    alone = torch.cat([scores(model, padded([text], pad)) for text in texts])
    together = scores(model, padded(texts, pad))
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    if len({len(text) for text in texts}) > 1:
        longer = scores(model, padded([*texts, [4] * (LONGEST + 3)], pad))[:-1]
        torch.testing.assert_close(longer, alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "pooling"), CELLS)
def test_an_adapted_model_hides_padding_too_however_it_is_called(
    models: dict[tuple[str, str], Any], name: str, pooling: str
):
    source = models[name, pooling]
    model = attach_adapter(source, MoeAdapterConfig(num_experts=5, expert_dim=3, top_k=1, blocks="last-1"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=generator(2, *parameter.shape))
    texts = [[7, 8, 9, 2], [4, 1, 6, 8, 9, 10, 11, 5]]
    for pad in (0, 1, 2, 9):
        batch = padded(texts, pad)
        alone = torch.cat([scores(model, padded([text], pad)) for text in texts])
        given = scores(model, batch)
        # Adapters are float32.
        torch.testing.assert_close(given, alone.to(given), rtol=1e-5, atol=1e-5)
        with torch.inference_mode():
            found = model(batch["input_ids"], attention_mask=batch["attention_mask"])
        torch.testing.assert_close(found if isinstance(found, Tensor) else found.logits, given, rtol=0, atol=0)
    model.unload()


def test_positions_that_depend_on_the_longest_text_are_out_of_reach(tmp_path: Path):
    """Beyond the original length such a model answers otherwise for the short texts of the batch."""
    rotary = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 5,
        "long_factor": [4.0] * 5,
        "original_max_position_embeddings": 7,
    }
    config = transformers.LlamaConfig(**DECODERS, pad_token_id=2, eos_token_id=2, rope_parameters=rotary)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    model: Any = load_backbone(str(tmp_path), num_labels=3).double()
    most = readable_tokens(model)
    assert most == 7
    texts = [[7, 8, 9], [4] * most]
    alone = scores(model, padded(texts[:1], 2))
    torch.testing.assert_close(scores(model, padded(texts, 2))[:1], alone, rtol=1e-10, atol=1e-10)
    longer = scores(model, padded([texts[0], [4] * (most + 1)], 2))[:1]
    assert (longer - alone).abs().max() > 1e-6
