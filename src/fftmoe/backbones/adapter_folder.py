"""Checks a saved adapter before PEFT reads it: it may contain what this package writes, and nothing else.

A configuration of PEFT can name modules to import, patterns to search with, and sizes without a limit.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.bound import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fftmoe.errors import InputError
from fftmoe.strict import read_small, strict_json

MOST_CONFIG = 2**24  # bytes: with LoRA the file names every module of a large model
# Fields that may have any value. All fields that are not listed here or below must have the default value of PEFT.
ANY = {"auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "inference_mode", "modules_to_save"}
ANY |= {"task_type"}  # which PEFT checks itself
ADAPTER_TYPES: dict[str, tuple[Any, set[str]]] = {
    "FFT_MOE": (
        MoeAdapterConfig,
        {"num_experts", "expert_dim", "shared_dim", "shared_rank", "shared_targets", "top_k", "blocks", "activation"}
        | {"gates", "scale", "compute", "balance_strength", "z_strength", "seed", "target_modules", "exclude_modules"},
    ),
    "LORA": (
        LoraConfig,
        {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "layers_to_transform", "fan_in_fan_out"},
    ),
}
PLAIN = re.compile(r"[\w.\\-]+")  # the name of a module, perhaps escaped: a pattern that is fast to search with


def check_adapter(folder: Path) -> None:
    """Check that a folder holds an adapter in the form in which this package saves it.

    Raises:
        InputError: it does not. Nothing large has been created.
    """
    try:
        values = strict_json(read_small(folder / ADAPTER_CONFIG, MOST_CONFIG))
        shapes = _tensor_shapes(folder / ADAPTER_WEIGHTS)
        reason = _foreign(values) or _oversized(values, shapes)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error)
    if reason:
        raise InputError(f"cannot load the adapter in {folder}: {reason}; it is damaged, or was not saved by fftmoe")


def _tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in the file, by name."""
    if not path.is_file():
        raise ValueError(f"it has no {ADAPTER_WEIGHTS}, and weights in other formats can contain code")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


def _foreign(values: Mapping[str, Any]) -> str | None:
    """Return the first value that this package does not write, as a reason; None if there is no such value."""
    if values.get("peft_type") not in ADAPTER_TYPES:
        return f"its peft_type is {values.get('peft_type')!r:.50}; expected {' or '.join(ADAPTER_TYPES)}"
    make, own = ADAPTER_TYPES[values["peft_type"]]
    usual = make().to_dict()
    for name, value in values.items():
        if name not in ANY | own and (name not in usual or value != usual[name]):
            return f"its {ADAPTER_CONFIG} says {name}={value!r:.50}"
    for name in ("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"):
        names = values.get(name) or ()
        if isinstance(names, str) or not all(isinstance(text, str) and PLAIN.fullmatch(text) for text in names):
            return f"its {name} are {names!r:.50}; expected plain names"
    return None


def _oversized(values: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> str | None:
    """Return a reason if the configuration asks for sizes that none of its tensors has; None otherwise."""
    held = {name: shape for name, shape in shapes.items() if 0 not in shape}
    sizes = {0, 1, *(size for shape in held.values() for size in shape)}
    ranks = [values.get("r", 1), *(values.get("rank_pattern") or {}).values()]
    asked = [*ranks, values.get("shared_dim", 0), values.get("shared_rank", 0)]
    pool = [values.get("num_experts"), values.get("expert_dim")]
    is_pool = pool == [None, None] or any(shape[:2] == pool for shape in held.values() if len(shape) == 3)
    if any(type(size) is not int or size not in sizes for size in asked) or not is_pool:
        return f"its {ADAPTER_CONFIG} asks for sizes that no tensor of {ADAPTER_WEIGHTS} has"
    return None
