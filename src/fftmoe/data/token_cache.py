"""Tokenize once: a cache on disk whose key is the content that went in, so it can never be stale."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fftmoe.data.sources import Split
from fftmoe.data.tokens import TokenizedText, pad_id_of, tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of every key: raise it when the file's layout or the way of tokenizing changes.
FORMAT_VERSION = 1


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$FFTMOE_CACHE`, else `$XDG_CACHE_HOME/fftmoe`, else `~/.cache/fftmoe`."""
    if environment.get("FFTMOE_CACHE"):
        return Path(environment["FFTMOE_CACHE"]).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fftmoe"


def tokenize_cached(
    split: Split, tokenizer: "PreTrainedTokenizerBase", max_length: int, cache_dir: Path | None
) -> TokenizedText:
    """What `tokenize_texts` gives, from `cache_dir` where it holds this very content (None: no cache).

    A file is written whole or not at all. One that cannot be read is made anew, and a folder that cannot be
    written is only logged: the cache saves time, nothing depends on it.

    Raises:
        InputError: as `tokenize_texts`.
    """
    if cache_dir is None:
        return tokenize_texts(split.texts, split.labels, tokenizer, max_length)
    path = Path(cache_dir) / f"tokens-{cache_key(split, tokenizer, max_length)}.safetensors"
    cached = _load(path, pad_id_of(tokenizer))
    if cached is not None and not _fits(cached, split, len(tokenizer), max_length):
        cached = None
    if cached is not None:
        return cached
    examples = tokenize_texts(split.texts, split.labels, tokenizer, max_length)
    try:
        _save(path, examples)
    except OSError as error:
        logging.getLogger(__name__).warning("cannot write the token cache %s: %s", path, error)
    return examples


def cache_key(split: Split, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> str:
    """SHA-256 over the texts, the labels, the tokenizer's content, `max_length` and the format's version."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {max_length} {len(split)}\n".encode())
    digest.update(_tokenizer_content(tokenizer).encode())
    digest.update(split.labels.astype("<i8").tobytes())
    for text in split.texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)} ".encode())  # lengths keep ("ab", "c") and ("a", "bc") apart
        digest.update(data)
    return digest.hexdigest()


def _tokenizer_content(tokenizer: "PreTrainedTokenizerBase") -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    # These two hold the settings of whichever call came last, not the tokenizer's own.
    content.update(truncation=None, padding=None)
    content.update(
        kind=type(tokenizer).__name__,
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        truncation_side=tokenizer.truncation_side,
    )
    return json.dumps(content, sort_keys=True)


def _load(path: Path, pad_id: int) -> TokenizedText | None:
    try:
        tensors = load_file(path)  # memory-mapped
        return TokenizedText(tensors["input_ids"], tensors["offsets"], tensors["labels"], pad_id)
    except (OSError, SafetensorError, KeyError):
        return None


def _fits(examples: TokenizedText, split: Split, num_tokens: int, max_length: int) -> bool:
    """Whether this could be what the tokenizer gave for these texts: a damaged file must not reach the model."""
    ids, offsets, labels = examples.input_ids, examples.offsets, examples.labels
    if (ids.dtype, offsets.dtype) != (torch.int32, torch.int64) or (ids.dim(), len(offsets.shape)) != (1, 1):
        return False
    lengths = offsets.diff()
    return (
        len(offsets) == len(split) + 1
        and torch.equal(labels, torch.from_numpy(split.labels))
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(ids)
        and bool(((lengths > 0) & (lengths <= max_length)).all())
        and bool(((ids >= 0) & (ids < num_tokens)).all())
    )


def _save(path: Path, examples: TokenizedText) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
    os.close(handle)
    try:
        tensors = {"input_ids": examples.input_ids, "offsets": examples.offsets, "labels": examples.labels}
        save_file(tensors, temporary)
        os.replace(temporary, path)  # atomic: another process sees the old file, the new one, or none
    finally:
        Path(temporary).unlink(missing_ok=True)
