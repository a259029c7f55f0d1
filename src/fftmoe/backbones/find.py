"""Finds the files of a model: a built-in model, a local folder, or a hub id."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from fftmoe.backbones.builtin import BUILTIN_MODELS, WITHOUT_HUB
from fftmoe.data.reach import why_unreachable
from fftmoe.errors import InputError, did_you_mean, looked_up


def resolve_model(model: str) -> str:
    """Return the local folder or hub id that `model` stands for; a folder by its full name, as saved adapters keep it.

    Args:
        model: "builtin:minilm", "builtin:smollm2", a local folder, or a hub id.

    Raises:
        InputError: an unknown built-in model, a folder that does not exist or lacks a file, or a package that is
            missing or was altered.
    """
    if model.startswith("builtin:"):
        if model not in BUILTIN_MODELS:
            raise InputError(f"unknown model {model!r}{did_you_mean(model, BUILTIN_MODELS)}")
        folder = BUILTIN_MODELS[model]()
        _check_model_folder(folder)
        return str(folder)
    with looked_up(f"model folder {model!r:.200}"):
        folder = Path(model).expanduser()
        if folder.is_dir():
            _check_model_folder(folder)
            return str(folder.absolute())
    # A hub id is `name` or `owner/name`; everything else can only be a folder.
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/"):
        raise InputError(f"model folder {model!r} does not exist; name an existing folder, or a hub id")
    return _on_the_hub(model, folder)


def is_hub_id(model: str) -> bool:
    """Return whether a name that `resolve_model` accepts is a hub id."""
    return not model.startswith("builtin:") and not Path(model).expanduser().is_dir()


def _on_the_hub(model: str, folder: Path) -> str:
    """Return the hub id if the hub can be reached, else the local copy of it."""
    reason = why_unreachable()
    if reason is None:
        return model
    try:
        copy = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        copy = None
    if isinstance(copy, str):
        return str(Path(copy).parent)
    raise InputError(
        f"model {model!r} is not a local folder (looked for {folder.absolute()}), and cannot be loaded from the "
        f"Hugging Face hub ({reason:.300}), of which there is no copy here; correct the path, or the network"
        + (f", or use {WITHOUT_HUB[model]}, which comes in a package" if model in WITHOUT_HUB else "")
    )


def _check_model_folder(folder: Path) -> None:
    missing: list[str] = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("weights (*.safetensors)")
    if missing:
        raise InputError(
            f"model folder '{folder}' has no {' and no '.join(missing)}; name a folder that save_pretrained wrote"
        )
