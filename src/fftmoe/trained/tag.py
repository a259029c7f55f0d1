"""Tags the words of texts with the token classifier of a finished run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import NO_ANSWER, check_finite_outputs, load_tokenizer, logits, on_device
from fftmoe.data import IGNORED, Origin, evaluation_batches, tokenize_tagged
from fftmoe.trained.prior import Prior
from fftmoe.trained.run import TrainedModel


@torch.inference_mode()
def tag_words(
    trained: TrainedModel, texts: Sequence[str], batch_size: int, prior: Prior | None = None
) -> list[dict[str, Any]]:
    """Return the tag of every word of each text; words are separated by white space.

    Args:
        prior: how often tags occur where the texts come from; None to leave the answers as they are.

    Returns:
        `{"text", "tokens", "tags"}` for each text. The tag of a word that lies beyond the run's maximum length, and
        that the model therefore does not read, is None. A text with outputs that are not finite has None for both,
        and a `"reason"`.

    Raises:
        RunError: no text has finite outputs.
    """
    run, model = trained.run, trained.model
    words = [text.split() for text in texts]
    # Each word gets its position as its tag, so the labels show which token is the first one of which word.
    positions = [str(place) for place in range(max(map(len, words)))]
    examples = tokenize_tagged(
        Origin("the texts"),
        words,
        [positions[: len(own)] for own in words],
        positions,
        np.zeros(len(texts), dtype=np.int64),
        load_tokenizer(run.backbone.model),
        run.inputs.max_length,
    )
    tags: list[list[str | None]] = [[None] * len(own) for own in words]
    places: list[tuple[int, int]] = []  # (text, word) of each item
    read: list[Tensor] = []
    sound_N = torch.ones(len(texts), dtype=torch.bool)
    for rows in evaluation_batches(examples, batch_size):
        batch = on_device(model, examples.batch(rows))
        logits_BSC = logits(model, batch)
        sound_N[rows] = (logits_BSC.isfinite().all(-1) | (batch["labels"] == IGNORED)).all(1).cpu()
        first_BS = batch["labels"] != IGNORED
        read.append(logits_BSC[first_BS].float().cpu())
        for row, labels in zip(rows.tolist(), batch["labels"].tolist(), strict=True):
            places += [(row, word) for word in labels if word != IGNORED]
    logits_NC = torch.cat(read)
    best_N = (logits_NC if prior is None else prior.corrected(logits_NC)).argmax(-1)
    for (row, word), label in zip(places, best_N.tolist(), strict=True):
        tags[row][word] = run.label_names[label]
    if not sound_N.any():
        check_finite_outputs(sound_N)
    return [
        {"text": text, "tokens": own, "tags": found}
        if sound
        else {"text": text, "tokens": None, "tags": None, "reason": NO_ANSWER}
        for text, own, found, sound in zip(texts, words, tags, sound_N.tolist(), strict=True)
    ]
