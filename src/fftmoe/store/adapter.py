"""The saved adapter: a PEFT folder, with the names of the labels."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError
from fftmoe.store.files import disk_errors


def save_adapter(model: Any, folder: Path, label_names: Sequence[str]) -> None:
    """A PEFT folder (`adapter_config.json`, safetensors) with `labels.json`, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with disk_errors(folder):
        try:
            model.save_pretrained(str(temporary))
            (temporary / "labels.json").write_text(json.dumps({"labels": list(label_names)}, indent=2) + "\n")
            for file in temporary.iterdir():
                file.chmod(0o644)  # safetensors makes files that nobody but their owner can read
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_labels(folder: Path) -> tuple[str, ...]:
    """The label names beside a saved adapter, in the order of the logits.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / "labels.json"
    try:
        return tuple(json.loads(path.read_text())["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {path}: {error}; the run's folder is damaged, run it again") from error
