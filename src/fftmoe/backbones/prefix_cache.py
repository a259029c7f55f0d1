"""Caches the states that enter the first adapted block on disk. A run works without this cache, only more slowly."""

import dataclasses
import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe.backbones import (
    check_prefix,
    compute_dtype,
    enable_resume,
    on_device,
    prefix_states,
    prefix_tensors,
)
from fftmoe.data import Examples, WithPrefix, evaluation_batches
from fftmoe.errors import InputError
from fftmoe.shown import count_of
from fftmoe.strict import hash_text

# A part of every key: raise it when the layout of the file or the way of computing changes.
PREFIX_FORMAT = 2
PREFIX_BATCH_SIZE = 64


def with_prefix(
    model: nn.Module,
    block: int,
    examples: Examples,
    cache_dir: Path | None,
    max_bytes: int,
    groups: Sequence[np.ndarray] | None = None,
) -> Examples:
    """Add the states that enter block `block` to the examples, and prepare the model to run from there.

    Where that is impossible (too large, a full disk, a model that does not allow it), the reason is logged and the
    examples are returned unchanged; the run then only takes longer.

    Args:
        model: frozen before that block, in evaluation mode.
        block: counted from 0; `first_adapted_block(model)` saves most.
        examples: at least one.
        cache_dir: the folder of the file `prefix-<key>.bin`; None for no cache.
        max_bytes: the size above which nothing is cached.
        groups: parts that together are all examples and share no batch, so that the states of a part are the same to
            the last bit as without the other parts; None if that is not needed.
    """
    log = logging.getLogger(__name__)
    num_bytes, reason = prefix_cost(model, block, examples, max_bytes)
    if cache_dir is None:
        reason = "this user has no home folder; name one for the cache with FFTMOE_CACHE"
    if reason is not None or cache_dir is None:
        log.info("no states are cached: %s", reason)
        return examples
    num_states, dim = _state_sizes(model, block, examples)
    batches = _batches_within(examples, groups)
    path = cache_dir / f"prefix-{prefix_key(model, block, examples, () if groups is None else batches)}.bin"
    try:
        if not (path.is_file() and path.stat().st_size == num_bytes):
            log.info("computing the states of %s (%.0f MiB)", count_of(len(examples), "example"), num_bytes / 2**20)
            write_states(path, model, block, examples, batches)
    except OSError as error:
        log.warning("no states are cached: cannot write %s: %s", path, error)
        return examples
    enable_resume(model, block)
    return WithPrefix(examples, path, block, dim, _starts(num_states, batches), num_states, compute_dtype(model))


def prefix_cost(model: nn.Module, block: int, examples: Examples, max_bytes: int) -> tuple[int, str | None]:
    """Return how many bytes the states take on the disk, and the reason if they are not cached; None if they are.

    It is 0 bytes if the model does not allow it. The arguments are those of `with_prefix`.
    """
    if block == 0:
        return 0, "the adapter begins in the model's first block, or fftmoe does not know where its blocks are"
    try:
        check_prefix(model, block)
    except InputError as reason:
        return 0, str(reason)
    num_states, dim = _state_sizes(model, block, examples)
    num_bytes = int(num_states.sum()) * dim * compute_dtype(model).itemsize
    if num_bytes > max_bytes:
        return (
            num_bytes,
            f"they take {count_of(num_bytes, 'byte')}, more than the limit of {count_of(max_bytes, 'byte')}",
        )
    return num_bytes, None


def prefix_key(model: Any, block: int, examples: Examples, batches: Sequence[Tensor] = ()) -> str:
    """Return the SHA-256 over all that determines the states: code versions, configuration, weights, block, dtype and
    inputs.

    Args:
        model: whose configuration, weights and dtype count.
        block: that the states enter.
        examples: the inputs.
        batches: rows of each batch, if they do not follow from the inputs.
    """
    dtype, config = compute_dtype(model), model.config.to_dict()
    config.pop("_name_or_path", None)  # the same model may be in another folder
    digest = hashlib.sha256(f"{PREFIX_FORMAT} {torch.__version__} {block} {PREFIX_BATCH_SIZE} {dtype}\n".encode())
    digest.update(hash_text(config).encode())
    for name, tensor in prefix_tensors(model, block).items():
        _add_to_digest(digest, name, tensor)
    _add_to_digest(digest, "examples", examples)
    for batch in batches:
        _add_to_digest(digest, "batch", batch)
    return digest.hexdigest()


def _add_to_digest(digest: Any, name: str, value: Any) -> None:
    """Add a value to the digest: a tensor, a dataclass without its labels, or anything with a `repr`."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name != "labels":
                _add_to_digest(digest, field.name, getattr(value, field.name))
        return
    if not isinstance(value, Tensor):
        digest.update(f"{name} {value!r}\n".encode())
        return
    digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
    # As bytes: numpy has no bfloat16.
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _batches_within(examples: Examples, groups: Sequence[np.ndarray] | None) -> list[Tensor]:
    """Return the batches in which states are computed; no batch has examples of two groups."""
    parts = [None] if groups is None else groups
    return [batch for rows in parts for batch in evaluation_batches(examples, PREFIX_BATCH_SIZE, rows)]


def _state_sizes(model: nn.Module, block: int, examples: Examples) -> tuple[Tensor, int]:
    """Return the number of states of each example, int64 [N], and d. A text has one state for each token;
    images are alike.
    """
    batch = examples.batch([0])
    _, length, dim = prefix_states(model, block, on_device(model, batch)).shape
    return examples.lengths if "attention_mask" in batch else torch.full((len(examples),), length), dim


def _starts(num_states: Tensor, batches: list[Tensor]) -> Tensor:
    """Return where in the file the states of each example begin: they are in the order of the batches."""
    order = torch.cat(batches)
    starts = torch.empty_like(num_states)
    starts[order] = num_states[order].cumsum(0) - num_states[order]
    return starts


def write_states(path: Path, model: nn.Module, block: int, examples: Examples, batches: list[Tensor]) -> None:
    """Compute the states of all batches and write them to the file, in the dtype in which the model multiplies."""
    path.parent.mkdir(0o700, parents=True, exist_ok=True)  # tokens and states can be decoded
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for rows in batches:
                batch = examples.batch(rows)
                states = prefix_states(model, block, on_device(model, batch)).cpu().to(compute_dtype(model))
                mask = batch.get("attention_mask")
                own = states if mask is None else states[mask.bool()]
                file.write(own.contiguous().flatten().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # atomic: another process sees the whole file or no file
    finally:
        Path(temporary).unlink(missing_ok=True)
