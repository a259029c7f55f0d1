"""Checks a model's files before they are loaded: no code, nothing from other places, and no more memory than needed.

transformers is always called with `trust_remote_code=False`, but a configuration can name code in other ways: a kernel
from the hub for attention, a quantiser to import, the weights of another folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils.hub import cached_file

from fftmoe.adapter.bound import ADAPTER_CONFIG
from fftmoe.errors import InputError
from fftmoe.shown import count_of
from fftmoe.strict import read_small, strict_json

MODEL_CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer_config.json", "preprocessor_config.json"
MODEL_WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CODE = {"auto_map", "custom_generate", "custom_pipelines", "quantization_config", "transformers_weights", "use_kernels"}
IMPLEMENTATIONS = (None, False, True, "eager", "sdpa")  # others may be downloaded from the hub
MOST_BLOCKS = 1000
ANOTHER_COPY = "copy the model again, or name another one"
MOST_INDEX = 2**25  # bytes, enough for the names of a million tensors


def check_settings(source: str, name: str) -> None:
    """Check one of a model's JSON files, if the model has it: it may hold settings, but not name code or other places.

    Args:
        source: a local folder or a hub id.
        name: the name of the file.

    Raises:
        InputError: it names code or another place, or is not JSON.
    """
    path = _find_file(source, name)
    if path is None:
        return
    try:
        values = strict_json(read_small(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name} of the model {source!r}: {error}; {ANOTHER_COPY}") from error
    asked = [key for key, value in _all_keys(values) if _names_code(key, value)]
    if asked:
        raise InputError(
            f"{name} of the model {source!r} has {', '.join(asked)}: fftmoe runs no code that comes with a model, and "
            "reads plain weights from the model's own folder only; use another model, or a copy without these fields"
        )


def check_hub_files(source: str) -> None:
    """Check that a model of the hub is a whole model with its weights as safetensors.

    For an adapter, transformers would load the model that `adapter_config.json` names; for pickled weights, it would
    ask a service to convert them and take what that service proposes.

    Raises:
        InputError: it is not such a model. If the hub cannot be reached, nothing is checked, and loading says so.
    """
    if _find_file(source, MODEL_CONFIG) is None:
        return
    if _find_file(source, ADAPTER_CONFIG) is not None:
        raise InputError(f"the model {source!r} is an adapter; name the whole model")
    if all(_find_file(source, name) is None for name in (INDEX, MODEL_WEIGHTS)):
        raise InputError(
            f"the model {source!r} has no {MODEL_WEIGHTS}; weights in other formats can contain code and are not read: "
            "use another model, or save it with save_pretrained of a recent transformers"
        )


def check_weights(folder: Path) -> None:
    """Check that a local folder has its weights as safetensors, and that they are enough for its configuration.

    Raises:
        InputError: they are not. Nothing large has been created.
    """
    if (folder / ADAPTER_CONFIG).exists():  # transformers would load the model that this file names
        raise InputError(f"model folder '{folder}' is the folder of an adapter; name the folder of the whole model")
    files = [folder / MODEL_WEIGHTS]
    if not files[0].is_file():
        files = [folder / name for name in _shards(folder)]
    try:
        held = sum(_count_numbers(path) for path in files)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights in model folder '{folder}' cannot be read: {error}; {ANOTHER_COPY}") from error
    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    blocks = getattr(config, "num_hidden_layers", 0)
    if not isinstance(blocks, int) or blocks > MOST_BLOCKS:
        raise InputError(
            f"config.json in '{folder}' says {blocks!r:.50} blocks; at most {MOST_BLOCKS} are allowed: use another"
        )
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    built = sum(p.numel() for p in model.parameters())
    if built > 2 * held:  # a part that is not in the file, such as a pooler, gets random weights
        raise InputError(
            f"config.json in '{folder}' describes a model of {count_of(built, 'number')}, but its weights are "
            f"{count_of(held, 'number')}: one of the two is damaged, or belongs to another model; {ANOTHER_COPY}"
        )


def _find_file(source: str, name: str) -> Path | None:
    """Return the path of a model's file; None if the model does not have it."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).exists() else None
    # None if there is no such file, or if the hub cannot be reached and the file is not in its cache.
    quietly = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    found = cached_file(source, name, **quietly)
    return None if found is None else Path(found)


def _all_keys(value: Any) -> list[tuple[str, Any]]:
    """Return every key with its value, at any depth."""
    if isinstance(value, Mapping):
        return [pair for key, own in value.items() for pair in ((key, own), *_all_keys(own))]
    return [pair for own in value for pair in _all_keys(own)] if isinstance(value, list) else []


def _names_code(key: str, value: Any) -> bool:
    return (key in CODE and value is not None) or ("implementation" in key and value not in IMPLEMENTATIONS)


def _shards(folder: Path) -> list[str]:
    """Return the names of the files of weights that are stored in several parts.

    Raises:
        InputError: there are no such files, or some are in another folder.
    """
    try:
        shards = sorted(set(strict_json(read_small(folder / INDEX, MOST_INDEX))["weight_map"].values()))
        inside = all(Path(name).name == name and name.endswith(".safetensors") for name in shards)
    except FileNotFoundError:
        raise InputError(
            f"model folder '{folder}' has no model.safetensors; weights in other formats can contain code and are not "
            "read: save the model with save_pretrained of a recent transformers"
        ) from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{INDEX} in model folder '{folder}' cannot be read: {error}; {ANOTHER_COPY}") from error
    if not shards or not inside:
        raise InputError(
            f"{INDEX} in model folder '{folder}' names files that are not *.safetensors in the same folder; "
            f"{ANOTHER_COPY}"
        )
    return shards


def _count_numbers(path: Path) -> int:
    """Return how many numbers the tensors of a file have together."""
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    return sum(torch.Size(shape).numel() for shape in shapes)
