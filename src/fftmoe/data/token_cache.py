"""Caches tokenized texts on disk. Its key is a hash of the content, so an entry can never be stale."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fftmoe.data.tokens import TokenizedText, pad_id_of, tokenize_texts
from fftmoe.strict import hash_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of every key: raise it if the file's layout or the way of tokenizing changes.
FORMAT_VERSION = 1


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return `$FFTMOE_CACHE`, else `$XDG_CACHE_HOME/fftmoe`, else `~/.cache/fftmoe`; None for a user without a home."""
    try:
        if environment.get("FFTMOE_CACHE"):
            return Path(environment["FFTMOE_CACHE"]).expanduser()
        return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fftmoe"
    except RuntimeError:  # a container's user may have neither HOME nor an entry in the list of users
        return None


def tokenize_cached(
    texts: Sequence[str],
    labels: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    cache_dir: Path | None,
) -> TokenizedText:
    """Return the result of `tokenize_texts`, read from `cache_dir` if it holds exactly this content (None: no cache).

    A file is written whole or not at all. A file that cannot be read is written again, and a folder that cannot be
    written is only logged: the cache saves time, and nothing depends on it.

    Raises:
        InputError: as `tokenize_texts`.
    """
    if cache_dir is None:
        return tokenize_texts(texts, labels, tokenizer, max_length)
    path = Path(cache_dir) / f"tokens-{cache_key(texts, labels, tokenizer, max_length)}.safetensors"
    cached = read_cached(path, pad_id_of(tokenizer))
    if cached is not None and not fits_texts(cached, labels, len(tokenizer), max_length):
        cached = None
    if cached is not None:
        return cached
    examples = tokenize_texts(texts, labels, tokenizer, max_length)
    try:
        _write_entry(path, examples)
    except OSError as error:
        logging.getLogger(__name__).warning("cannot write the token cache %s: %s", path, error)
    return examples


def cache_key(texts: Sequence[str], labels: np.ndarray, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> str:
    """Return the SHA-256 over the texts, the labels, the tokenizer's content, `max_length` and the format's version."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {max_length} {len(texts)}\n".encode())
    digest.update(_tokenizer_content(tokenizer).encode())
    digest.update(labels.astype("<i8").tobytes())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)} ".encode())  # lengths keep ("ab", "c") and ("a", "bc") apart
        digest.update(data)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return sixteen hexadecimal digits for all of a tokenizer that decides which tokens a text has."""
    more = {name: getattr(tokenizer, name, None) for name in ("chat_template", "pad_token", "padding_side")}
    return hashlib.sha256(f"{_tokenizer_content(tokenizer)}{hash_text(more, sort_keys=False)}".encode()).hexdigest()[
        :16
    ]


def _tokenizer_content(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    # These two hold the settings of the last call, not those of the tokenizer.
    content.update(truncation=None, padding=None)
    content.update(
        kind=type(tokenizer).__name__,
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        truncation_side=tokenizer.truncation_side,
    )
    return hash_text(content)


def read_cached(path: Path, pad_id: int) -> TokenizedText | None:
    """Return the tokenized texts in this file of the cache; None if it is absent or damaged."""
    try:
        tensors = load_file(path)  # memory-mapped
        return TokenizedText(tensors["input_ids"], tensors["offsets"], tensors["labels"], pad_id)
    except (OSError, SafetensorError, KeyError):
        return None


def fits_texts(examples: TokenizedText, labels: np.ndarray, num_tokens: int, max_length: int) -> bool:
    """Return whether this can be the tokenizer's result for texts with these labels:
    a damaged file must not reach a model.
    """
    ids, offsets = examples.input_ids, examples.offsets
    if (ids.dtype, offsets.dtype) != (torch.int32, torch.int64) or (ids.dim(), len(offsets.shape)) != (1, 1):
        return False
    lengths = offsets.diff()
    return (
        len(offsets) == len(labels) + 1
        and torch.equal(examples.labels, torch.from_numpy(labels))
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(ids)
        and bool(((lengths > 0) & (lengths <= max_length)).all())
        and bool(((ids >= 0) & (ids < num_tokens)).all())
    )


def _write_entry(path: Path, examples: TokenizedText) -> None:
    path.parent.mkdir(0o700, parents=True, exist_ok=True)  # tokens and states can be decoded
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    os.close(handle)
    try:
        tensors = {"input_ids": examples.input_ids, "offsets": examples.offsets, "labels": examples.labels}
        save_file(tensors, temporary)
        os.replace(temporary, path)  # atomic: another process sees the old file, the new file, or no file
    finally:
        Path(temporary).unlink(missing_ok=True)
