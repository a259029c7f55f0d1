"""How many tokens a model reads: by its configuration alone, and by the loaded model, which says no less."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from torch import nn

from fftmoe.backbones.positions import check_vocabulary, most_tokens_of, readable_tokens
from fftmoe.errors import InputError

PLACES, ORIGINAL = 37, 11
SIZES: dict[str, Any] = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 31}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 5,
    "long_factor": [4.0] * 5,
    "original_max_position_embeddings": ORIGINAL,
}
PLAIN = {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": ORIGINAL}


def saved(config: transformers.PreTrainedConfig, folder: Path) -> str:
    """A folder with a configuration; its weights are not read."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (transformers.BertConfig(**SIZES, max_position_embeddings=PLACES, pad_token_id=5), PLACES),
        (transformers.RobertaConfig(**SIZES, max_position_embeddings=PLACES, pad_token_id=5), PLACES - 6),
        (transformers.RobertaConfig(**SIZES, max_position_embeddings=PLACES, pad_token_id=None), PLACES - 1),
        (transformers.LlamaConfig(**SIZES, max_position_embeddings=PLACES, rope_parameters=PLAIN), PLACES),
        (transformers.LlamaConfig(**SIZES, max_position_embeddings=PLACES, rope_parameters=LONGROPE), ORIGINAL),
        (transformers.T5Config(vocab_size=31), sys.maxsize),
    ],
    ids=["first", "after-padding", "no-padding", "other-rotary", "longrope", "no-limit"],
)
def test_a_configuration_names_the_most_tokens(config: transformers.PreTrainedConfig, most: int, tmp_path: Path):
    assert most_tokens_of(saved(config, tmp_path)) == most


def test_a_configuration_that_names_code_is_not_read(tmp_path: Path):
    source = saved(transformers.BertConfig(**SIZES, max_position_embeddings=PLACES), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoConfig": "own.Config"}}))
    with pytest.raises(InputError, match="auto_map"):
        most_tokens_of(source)


def loaded(positions: Any, rotary: Any = None, **parts: nn.Module) -> Any:
    """A model with this configuration and these parts in a block."""
    model: Any = nn.Module()
    model.config = SimpleNamespace(max_position_embeddings=positions, rope_parameters=rotary)
    model.block = nn.ModuleDict(parts)
    return model


@pytest.mark.parametrize(
    ("model", "most"),
    [
        (loaded(PLACES), PLACES),
        (loaded(PLACES, position_embeddings=nn.Embedding(9, 2)), 9),
        (loaded(PLACES, position_embeddings=nn.Embedding(9, 2, padding_idx=0)), 8),
        (loaded(PLACES, position_embeddings=nn.Embedding(9, 2, padding_idx=3)), 5),
        (loaded(PLACES, position_embeddings=nn.Identity(), word_embeddings=nn.Embedding(9, 2)), PLACES),
        (loaded(PLACES, LONGROPE), ORIGINAL),
        (loaded(PLACES, PLAIN), PLACES),
        (loaded(None, LONGROPE, position_embeddings=nn.Embedding(9, 2)), None),
    ],
)
def test_a_loaded_model_names_the_most_tokens(model: Any, most: int | None):
    assert readable_tokens(model) == most


def with_vocabulary(size: Any) -> Any:
    text = SimpleNamespace(vocab_size=size)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))


def test_a_token_beyond_the_vocabulary_is_refused():
    for largest in (-1, 0, 30):
        check_vocabulary(with_vocabulary(31), largest, "model")
    for largest in (31, 99):
        words = f"the tokenizer of 'model' gives token {largest}, but the vocabulary of the model ends with 30"
        with pytest.raises(InputError, match=words):
            check_vocabulary(with_vocabulary(31), largest, "model")
    check_vocabulary(with_vocabulary(None), 99, "model")
