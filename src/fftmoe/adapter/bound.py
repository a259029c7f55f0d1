"""States what a saved adapter is bound to: its complete tensors, its settings, its labels and the frozen weights below
it.

`bound.json` lies beside the adapter's own files and records them when they are written. Whatever opens the folder
compares them: this package, and PEFT, which asks this package for the configuration of its adapters.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fftmoe.errors import InputError
from fftmoe.records import HALVES, digest
from fftmoe.strict import hash_text, read_small, strict_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them
BOUND, LABELS = "bound.json", "labels.json"
BOUND_FORMAT = 1
MOST_BOUND_BYTES = 2**24
# Settings that do not decide what the adapter computes, or that an export may choose.
FREE = {"top_k", "peft_version", "base_model_name_or_path", "inference_mode", "auto_mapping", "revision", "task_type"}
HEAD_MODULES = ("pre_classifier", "classifier", "score")
"""The names in transformers of the layers between the features and the logits.

These layers are trained completely, so their weights come with an adapter.
"""


def describe_adapter(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Return what an adapter that was saved into this folder is bound to.

    Args:
        model: the model whose adapter it is.
    """
    return {"format": BOUND_FORMAT, **_contents(folder), "base": describe_base(model)}


def _contents(folder: Path) -> dict[str, Any]:
    """Return the tensors by name with their type and shape, and digests of the files."""
    settings = {
        k: v for k, v in strict_json(read_small(folder / ADAPTER_CONFIG, MOST_BOUND_BYTES)).items() if k not in FREE
    }
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        tensors = {name: f"{part.get_dtype()} {list(part.get_shape())}" for name, part in sorted(parts.items())}
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    labels = (folder / LABELS).read_bytes() if (folder / LABELS).exists() else b""
    text = hash_text(settings)
    return {
        "tensors": tensors,
        "weights": weights,
        "settings": hashlib.sha256(text.encode()).hexdigest(),
        "labels": hashlib.sha256(labels).hexdigest(),
    }


def check_adapter_files(folder: Path) -> Mapping[str, Any] | None:
    """Compare the files of a saved adapter with its `bound.json`; return what it says about the weights below.

    None if there is no such file, because PEFT or an older version saved the adapter.

    Raises:
        InputError: something differs, or `bound.json` is damaged; the message names what.
    """
    if not (folder / BOUND).exists():
        return None
    try:
        bound = strict_json(read_small(folder / BOUND, MOST_BOUND_BYTES))
        tables = isinstance(bound["base"], dict) and isinstance(bound["tensors"], dict)
        if bound["format"] != BOUND_FORMAT or not tables:
            raise ValueError("it has not the form of format 1")
        reason, base = _changed(bound, _contents(folder)), bound["base"]
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        reason, base = f"its {BOUND} or one of the files that it names cannot be read ({error})", None
    if reason is not None:
        raise InputError(f"the adapter in {folder} is not as it was saved: {reason}; restore its files")
    return base


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for name, form in then["tensors"].items():
        if name not in now["tensors"]:
            return f"its tensor {name} is missing"
        if now["tensors"][name] != form:
            return f"its tensor {name} is {now['tensors'][name]} and was {form}"
    if extra := sorted(set(now["tensors"]) - set(then["tensors"])):
        return f"it has a tensor {extra[0]} that it had not"
    words = {"weights": "the values of its tensors have changed", "settings": f"its {ADAPTER_CONFIG} has changed"}
    words |= {"labels": f"its {LABELS} has changed"}
    return next((text for name, text in words.items() if then[name] != now[name]), None)


def describe_base(model: nn.Module) -> dict[str, Any]:
    """Return the digest of the frozen weights below an adapter, and their types, without which digests cannot be
    compared.

    `types` are those after numbers of 16 bits have been widened to float32, as in the digest; `stored` those before.
    """
    tensors = base_tensors(model, HEAD_MODULES)
    stored = _types(tensors.values())
    return {"weights": digest(tensors, widened=True), "types": _widened(stored), "stored": stored}


def check_base(base: Mapping[str, Any], model: nn.Module, folder: object) -> None:
    """Compare the frozen weights below an adapter with those that it was trained on.

    Weights that were converted to other types, quantized, or not loaded yet cannot be compared, and pass.

    Raises:
        InputError: they are others.
    """
    tensors = base_tensors(model, HEAD_MODULES)
    stored = _types(tensors.values())
    # Float32 numbers that were rounded to 16 bits are others, and rightly so.
    rounded = stored != _widened(stored) and stored != base.get("stored", base.get("types"))
    comparable = _widened(stored) == base.get("types") and not any(t.is_meta for t in tensors.values())
    if comparable and not rounded and digest(tensors, widened=True) != base.get("weights"):
        raise InputError(
            f"the adapter in {folder} was trained on other weights than those of this model; load the model that it "
            "was trained on"
        )


def _types(tensors: Iterable[Tensor]) -> list[str]:
    return sorted({str(tensor.dtype) for tensor in tensors})


def _widened(types: Iterable[str]) -> list[str]:
    return sorted({str(torch.float32) if name in map(str, HALVES) else name for name in types})


def base_tensors(model: nn.Module, heads: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a backbone without adapters and heads,
    by the names that they have in a model without them.
    """
    inner: nn.Module = getattr(model, "get_base_model", lambda: model)()
    adapted = [path for path, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in inner.state_dict().items()
        if not set(heads) & set(name.split("."))
        and all(not name.startswith(f"{path}.") or name.startswith(f"{path}.base_layer.") for path in adapted)
    }


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Check that tensors are exactly those that an adapter needs.

    Args:
        found: the tensors. expected: the adapter's own, by the same names. what: whose they are, for the message.

    Raises:
        InputError: one is missing, is one too many, has another shape or no floating type, or is not finite.
    """
    reason = None
    if missing := sorted(set(expected) - set(found)):
        reason = f"the tensor {missing[0]} is missing ({len(missing)} of {len(expected)} are)"
    elif extra := sorted(set(found) - set(expected)):
        reason = f"it has a tensor {extra[0]}, for which there is no place"
    for name in sorted(set(found) & set(expected)) if reason is None else ():
        tensor, own = found[name], expected[name]
        if tensor.shape != own.shape:
            reason = f"the tensor {name} has the shape {list(tensor.shape)}, and {list(own.shape)} is needed"
        elif tensor.is_floating_point() != own.is_floating_point():
            reason = f"the tensor {name} has the type {tensor.dtype}, and {own.dtype} is needed"
        elif not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            reason = f"the tensor {name} has values that are not finite"
        if reason is not None:
            break
    if reason is not None:
        raise InputError(f"{what} cannot be loaded: {reason}; it is damaged, or belongs to another model")
