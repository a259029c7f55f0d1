"""What a model may ask for before it is loaded: no code, nothing from elsewhere, and no more room than it fills.

transformers is always told to trust no remote code, but a configuration has more ways to name code: a kernel of the
hub for attention, a quantiser to import, another folder's weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from fftmoe.errors import InputError
from fftmoe.strict import read_small, strict_json

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer_config.json", "preprocessor_config.json"
INDEX = "model.safetensors.index.json"
CODE = {"auto_map", "custom_generate", "custom_pipelines", "quantization_config", "transformers_weights", "use_kernels"}
IMPLEMENTATIONS = (None, False, True, "eager", "sdpa")  # others are fetched from the hub where they are not installed
MOST_BLOCKS = 1000
MOST_INDEX = 2**25  # bytes, of the names of a million tensors


def check_settings(source: str, name: str) -> None:
    """Whether one of a model's JSON files, where it has it, asks for nothing but numbers and words.

    Args:
        source: a local folder or a hub id.

    Raises:
        InputError: it asks for code, for something elsewhere, or is no JSON.
    """
    path = _find(source, name)
    if path is None:
        return
    try:
        values = strict_json(read_small(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name} of the model {source!r}: {error}") from error
    asked = [key for key, value in _flat(values) if _names_code(key, value)]
    if asked:
        raise InputError(
            f"{name} of the model {source!r} has {', '.join(asked)}: fftmoe runs no code that comes with a model, and "
            "reads plain weights in its own folder alone; use another model, or a copy without that"
        )


def check_weights(folder: Path) -> None:
    """Whether a local folder holds the weights as safetensors, and as many as its configuration builds.

    Raises:
        InputError: it does not. Nothing large has been made.
    """
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names
        raise InputError(f"model folder '{folder}' is an adapter's; name the folder of the whole model")
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = [folder / name for name in _shards(folder)]
    try:
        held = sum(_numbers(path) for path in files)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights in model folder '{folder}' cannot be read: {error}") from error
    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    blocks = getattr(config, "num_hidden_layers", 0)
    if not isinstance(blocks, int) or blocks > MOST_BLOCKS:
        raise InputError(f"config.json in '{folder}' says {blocks!r:.50} blocks, and at most {MOST_BLOCKS} are read")
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    built = sum(p.numel() for p in model.parameters())
    if built > 2 * held:  # a part that is not in the file, such as a pooler, is drawn anew
        raise InputError(
            f"config.json in '{folder}' is of a model of {built} numbers, and its weights are {held}: one of the two "
            "is damaged, or of another model"
        )


def _find(source: str, name: str) -> Path | None:
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).exists() else None
    # None where there is no such file, or the hub cannot be asked and has never been.
    quietly = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    found = cached_file(source, name, **quietly)
    return None if found is None else Path(found)


def _flat(value: Any) -> list[tuple[str, Any]]:
    """Every key at any depth, with its value."""
    if isinstance(value, Mapping):
        return [pair for key, own in value.items() for pair in ((key, own), *_flat(own))]
    return [pair for own in value for pair in _flat(own)] if isinstance(value, list) else []


def _names_code(key: str, value: Any) -> bool:
    return (key in CODE and value is not None) or ("implementation" in key and value not in IMPLEMENTATIONS)


def _shards(folder: Path) -> list[str]:
    """The files of weights in several parts.

    Raises:
        InputError: there are none, or some are elsewhere.
    """
    try:
        shards = sorted(set(strict_json(read_small(folder / INDEX, MOST_INDEX))["weight_map"].values()))
        inside = all(Path(name).name == name and name.endswith(".safetensors") for name in shards)
    except FileNotFoundError:
        raise InputError(
            f"model folder '{folder}' has no model.safetensors; weights in other formats can hold code and are not "
            "read: save the model with save_pretrained of a recent transformers"
        ) from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{INDEX} in model folder '{folder}' cannot be read: {error}") from error
    if not shards or not inside:
        raise InputError(f"{INDEX} in model folder '{folder}' names files that are not *.safetensors beside it")
    return shards


def _numbers(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(torch.Size(shape).numel() for shape in shapes)
