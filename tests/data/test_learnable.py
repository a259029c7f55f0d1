"""Rows from which nothing can be learned are refused together, before training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fftmoe.backbones import load_backbone, readable_tokens
from fftmoe.data import Origin, check_content, check_tagged, has_content, tokenize_tagged, tokenize_texts
from fftmoe.errors import InputError
from language import POSITIONS, save_language_model
from models import tiny_tokenizer

TOKENIZER = tiny_tokenizer(("ash", "bay"))
EMPTY = "\u3000"  # a space, which the tokenizer drops


@pytest.mark.parametrize("bad", [{1}, {0, 3}, set(range(5)), set(range(7))])
def test_texts_without_a_token_of_their_own(bad: set[int]):
    texts = [EMPTY if row in bad else "ash bay" for row in range(7)]
    examples = tokenize_texts(texts, np.zeros(7), TOKENIZER, 9)
    named = ", ".join(str(row + 1) for row in sorted(bad)[:5]) + ", …" * (len(bad) > 5)
    with pytest.raises(
        InputError, match=rf"^here: in {len(bad)} of 7 rows \(rows? {named}\) .*no token that the model"
    ):
        check_content(Origin("here"), examples, TOKENIZER)


def test_a_text_of_unknown_words_has_content():
    check_content(Origin("here"), tokenize_texts(("dog", "ash"), np.zeros(2), TOKENIZER, 9), TOKENIZER)


def test_content_is_what_the_tokenizer_adds_to_its_frame():
    assert has_content([EMPTY, "ash", "dog", "", "[SEP]"], TOKENIZER) == [False, True, True, False, False]
    assert has_content([], TOKENIZER) == []


def test_texts_without_a_tagged_token():
    """The second text has no word that the tokenizer reads."""
    words = [[EMPTY, "ash"], [EMPTY], ["bay", "bay"]]
    tags = [["x"] * len(own) for own in words]
    examples = tokenize_tagged(Origin("here"), words, tags, ["x"], np.zeros(3), TOKENIZER, 9)
    with pytest.raises(InputError, match=r"^here: in 1 of 3 rows \(row 2\) there is no word .* data.max_length=9"):
        check_tagged(Origin("here"), examples, 9)
    check_tagged(Origin("here"), examples.select([2, 0]), 9)


# What a model can read


@pytest.mark.parametrize(("padding", "expected"), [(1, 21), (0, 22), (3, 19)])
def test_relatives_of_roberta_read_fewer_tokens_than_they_have_positions(tmp_path: Path, padding: int, expected: int):
    config = transformers.RobertaConfig(
        vocab_size=29,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=13,
        max_position_embeddings=23,
        pad_token_id=padding,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    model = load_backbone(str(tmp_path), num_labels=3)
    assert readable_tokens(model) == expected
    assert model(input_ids=torch.full((1, expected), 5)).logits.shape == (1, 3)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, expected + 1), 5))


def test_other_models_read_as_many_tokens_as_they_have_positions(backbone_folder: Path, tmp_path: Path):
    encoder: Any = load_backbone(str(backbone_folder), num_labels=3)
    assert readable_tokens(encoder) == encoder.config.max_position_embeddings
    assert readable_tokens(load_backbone(str(save_language_model(tmp_path)), task="causal-lm")) == POSITIONS
