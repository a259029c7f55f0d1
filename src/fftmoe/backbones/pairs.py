"""Scores the answers of preference pairs: their log-probabilities under a model, and under its frozen backbone.

The frozen backbone is the model with its adapter off, so it needs no memory of its own. What it says of an answer never
changes: it is computed once, kept in a file of the cache, and part of every batch from then on.

Shape letters: B pairs, N examples, S sequence.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fftmoe.backbones.attach import logits
from fftmoe.backbones.fingerprint import fingerprint
from fftmoe.backbones.placement import compute_dtype, on_device
from fftmoe.backbones.token_losses import token_losses
from fftmoe.data import IGNORED, Examples, Preferences, cached_states, evaluation_batches
from fftmoe.shown import count_of
from fftmoe.threads import one_thread

REFERENCE_FORMAT = 1  # a part of every key: raise it when the way of computing changes
REFERENCE_BATCH_SIZE = 32  # pairs


def outputs(model: nn.Module, batch: Mapping[str, Tensor], next_token: bool) -> Tensor:
    """Return what a task reads: the model's logits, or for a language model (`next_token`) the losses of its tokens.

    Of a batch of pairs it is the scores of the answers.
    """
    if "reference" in batch:
        return answer_scores(model, batch)
    return token_losses(model, batch) if next_token else logits(model, batch)


def answer_scores(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return what a loss of pairs reads, float32 [B, 2, 3]: for both answers of each pair three numbers.

    These are the log-probability of the answer's tokens under the model in nats, the same under the reference as the
    batch has it, and the number of these tokens.

    Args:
        batch: of `fftmoe.data.Preferences`: 2 B texts, and `reference` [B, 2].
    """
    losses_AS = token_losses(model, batch)
    tokens_A = (batch["labels"][:, 1:] != IGNORED).sum(1)
    policy_B2, tokens_B2 = (own.view(2, -1).T for own in (-losses_AS.sum(1), tokens_A.to(losses_AS.dtype)))
    return torch.stack([policy_B2, batch["reference"].to(policy_B2.dtype), tokens_B2], 2)


def with_references(
    model: nn.Module, examples: Examples, cache_dir: Path | None, groups: Sequence[np.ndarray] | None = None
) -> Examples:
    """Give pairs the log-probabilities of their answers under the frozen backbone; other examples stay as they are.

    They are read from `cache_dir` if a file there was made from the same weights and tokens (None: no cache). A folder
    that cannot be written is only logged.

    Args:
        model: with its adapter.
        groups: parts that together are all examples and share no batch, so that the numbers of a part are the same to
            the last bit as without the other parts; None if that is not needed.
    """
    if not isinstance(examples, Preferences):
        return examples
    parts: Sequence[np.ndarray | None] = [None] if groups is None else groups
    batches = [rows for part in parts for rows in evaluation_batches(examples, REFERENCE_BATCH_SIZE, part)]
    path = None if cache_dir is None else cache_dir / f"reference-{_key(model, examples, batches)}.safetensors"
    found = None if path is None else _read(path, len(examples))
    if found is None:
        pairs = count_of(len(examples), "pair")
        logging.getLogger(__name__).info("computing what the frozen backbone says of %s", pairs)
        found = _computed(model, examples, batches)
        if path is not None:
            _write(path, found)
    return replace(examples, reference=found)


def _computed(model: nn.Module, examples: Preferences, batches: Sequence[Tensor]) -> Tensor:
    """Return the log-probabilities float32 [N, 2] under the model without its adapter.

    They are computed on one thread, as clients compute, because sums over several may differ in the last bit.
    """
    found_N2 = torch.zeros(len(examples), 2)
    with torch.inference_mode(), one_thread(), _without_adapter(model):
        for rows in batches:
            found_N2[rows] = answer_scores(model, on_device(model, examples.batch(rows)))[..., 0].float().cpu()
    return found_N2


@contextmanager
def _without_adapter(model: Any) -> Iterator[None]:
    """Let the model be its backbone within the context; afterwards the same parameters are trained as before."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with model.disable_adapter():
        yield
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


def _key(model: nn.Module, examples: Preferences, batches: Sequence[Tensor]) -> str:
    """Return the SHA-256 over all that determines the numbers: versions, weights, dtype, tokens,
    and which share a batch.
    """
    answers = examples.answers
    states = cached_states(answers)
    texts: Any = answers if states is None else states.examples
    block = None if states is None else states.block  # where the model begins: another part rounds otherwise
    dtype = compute_dtype(model)
    digest = hashlib.sha256(
        f"{REFERENCE_FORMAT} {torch.__version__} {fingerprint(model)} {dtype} {block} {len(batches)}\n".encode()
    )
    for tensor in (texts.texts.input_ids, texts.texts.offsets, texts.starts, *batches):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, num_pairs: int) -> Tensor | None:
    """Return the numbers in a file of the cache; None if it is absent or damaged."""
    try:
        found = load_file(path)["reference"]
    except (OSError, SafetensorError, KeyError):
        return None
    fits = found.shape == (num_pairs, 2) and found.dtype == torch.float32
    return found if fits and bool((found.isfinite() & (found <= 0)).all()) else None


def _write(path: Path, reference_N2: Tensor) -> None:
    """Write the file whole, or not at all."""
    temporary = None
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)  # the numbers say something of the texts
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
        os.close(handle)
        save_file({"reference": reference_N2}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        logging.getLogger(__name__).warning("cannot write the cache of references %s: %s", path, error)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
