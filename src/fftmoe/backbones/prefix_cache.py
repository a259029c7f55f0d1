"""The frozen prefix of every example, computed once and kept on disk: a cache that nothing depends on."""

import dataclasses
import hashlib
import json
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

# Part of every key: raise it when the file's layout or the way of computing changes.
FORMAT_VERSION = 1
BATCH_SIZE = 64


def with_prefix(
    model: nn.Module,
    block: int,
    examples: Examples,
    cache_dir: Path,
    max_bytes: int,
    groups: Sequence[np.ndarray] | None = None,
) -> Examples:
    """The examples with the states that enter block `block`, and the model prepared to resume there.

    Where that cannot be had (too large, a full disk, a model that does not allow it) the reason is logged and the
    examples are returned as they are, which costs time and nothing else.

    Args:
        model: frozen before that block, in evaluation mode.
        block: from 0; `first_adapted_block(model)` is the one that saves most.
        examples: any number, at least one.
        cache_dir: where the file `prefix-<key>.bin` is, or will be.
        max_bytes: size above which nothing is cached.
        groups: a cover of the examples whose parts share no batch, so that each part has the states, to the last bit,
            that it would have by itself; None for no such care.
    """
    log = logging.getLogger(__name__)
    num_bytes, refused = prefix_cost(model, block, examples, max_bytes)
    if refused is not None:
        log.info("no states are cached: %s", refused)
        return examples
    num_states, dim = _shape(model, block, examples)
    dtype = compute_dtype(model)  # more digits than are multiplied would only take room
    parts = [None] if groups is None else groups
    batches = [batch for rows in parts for batch in evaluation_batches(examples, BATCH_SIZE, rows)]
    key = cache_key(model, block, examples, batches if groups is not None else ())
    path = Path(cache_dir) / f"prefix-{key}.bin"
    if not (path.is_file() and path.stat().st_size == num_bytes):
        log.info("computing the states of %d examples (%.0f MiB)", len(examples), num_bytes / 2**20)
        try:
            _write(path, model, block, examples, batches, dtype)
        except OSError as error:
            log.warning("no states are cached: cannot write %s: %s", path, error)
            return examples
    enable_resume(model, block)
    return WithPrefix(examples, path, block, dim, _starts(num_states, batches), num_states, dtype)


def prefix_cost(model: nn.Module, block: int, examples: Examples, max_bytes: int) -> tuple[int, str | None]:
    """What the states take on the disk, and why they are not cached; None where they are. Arguments as `with_prefix`'s.

    0 bytes where the model does not allow it.
    """
    if block == 0:
        return 0, "the adapter begins in the model's first block, or where its blocks are is unknown"
    try:
        check_prefix(model, block)
    except InputError as reason:
        return 0, str(reason)
    num_states, dim = _shape(model, block, examples)
    num_bytes = int(num_states.sum()) * dim * compute_dtype(model).itemsize
    if num_bytes > max_bytes:
        return num_bytes, f"they take {num_bytes} bytes, above the limit of {max_bytes}"
    return num_bytes, None


def cache_key(model: Any, block: int, examples: Examples, batches: Sequence[Tensor] = ()) -> str:
    """SHA-256 over all that decides the states: code versions, configuration, weights, block, dtype and the inputs.

    `batches` where they are not what follows from the inputs.
    """
    dtype, config = compute_dtype(model), model.config.to_dict()
    config.pop("_name_or_path", None)  # the same model elsewhere
    digest = hashlib.sha256(f"{FORMAT_VERSION} {torch.__version__} {block} {BATCH_SIZE} {dtype}\n".encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in prefix_tensors(model, block).items():
        _update(digest, name, tensor)
    _update(digest, "examples", examples)
    for batch in batches:
        _update(digest, "batch", batch)
    return digest.hexdigest()


def _update(digest: Any, name: str, value: Any) -> None:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name != "labels":
                _update(digest, field.name, getattr(value, field.name))
        return
    if not isinstance(value, Tensor):
        digest.update(f"{name} {value!r}\n".encode())
        return
    digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
    # As bytes, because numpy has no bfloat16.
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _shape(model: nn.Module, block: int, examples: Examples) -> tuple[Tensor, int]:
    """States of each example, int64 [N], and d: texts have one a token, images all have as many as the first."""
    batch = examples.batch([0])
    _, length, dim = prefix_states(model, block, on_device(model, batch)).shape
    return examples.lengths if "attention_mask" in batch else torch.full((len(examples),), length), dim


def _starts(num_states: Tensor, batches: list[Tensor]) -> Tensor:
    """Where in the file each example's states begin: they follow one another in the order of the batches."""
    order = torch.cat(batches)
    starts = torch.empty_like(num_states)
    starts[order] = num_states[order].cumsum(0) - num_states[order]
    return starts


def _write(
    path: Path, model: nn.Module, block: int, examples: Examples, batches: list[Tensor], dtype: torch.dtype
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for rows in batches:
                batch = examples.batch(rows)
                states = prefix_states(model, block, on_device(model, batch)).cpu().to(dtype)
                mask = batch.get("attention_mask")
                own = states if mask is None else states[mask.bool()]
                file.write(own.contiguous().flatten().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # atomic: another process sees the whole file or none
    finally:
        Path(temporary).unlink(missing_ok=True)
