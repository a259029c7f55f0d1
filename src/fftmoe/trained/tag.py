"""The tags that a run's model gives to the words of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fftmoe.backbones import load_tokenizer, logits, on_device
from fftmoe.config import Recipe
from fftmoe.data import IGNORED, evaluation_batches, tokenize_tagged


@torch.inference_mode()
def tag_words(
    recipe: Recipe, model: Any, label_names: Sequence[str], texts: Sequence[str], batch_size: int
) -> list[dict[str, Any]]:
    """`{"text", "tokens", "tags"}` of each text, its words being what lies between spaces.

    A word beyond `data.max_length`, of which the model sees nothing, has the tag None.
    """
    words = [text.split() for text in texts]
    # Each word's tag is its own number, so that the labels say which token is the first of which word.
    numbers = [str(place) for place in range(max(map(len, words)))]
    examples = tokenize_tagged(
        "the texts",
        words,
        [numbers[: len(own)] for own in words],
        numbers,
        np.zeros(len(texts), dtype=np.int64),
        load_tokenizer(recipe.backbone.model),
        recipe.data.max_length,
    )
    tags: list[list[str | None]] = [[None] * len(own) for own in words]
    for rows in evaluation_batches(examples, batch_size):
        batch = on_device(model, examples.batch(rows))
        best_BS = logits(model, batch).argmax(-1)
        for row, best, firsts in zip(rows.tolist(), best_BS.tolist(), batch["labels"].tolist(), strict=True):
            for label, word in zip(best, firsts, strict=True):
                if word != IGNORED:
                    tags[row][word] = label_names[label]
    answers = zip(texts, words, tags, strict=True)
    return [{"text": text, "tokens": own, "tags": found} for text, own, found in answers]
