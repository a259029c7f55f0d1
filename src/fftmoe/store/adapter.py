"""The saved adapter: a PEFT folder together with the names of the labels."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError
from fftmoe.store.files import disk_errors, sync
from fftmoe.strict import read_small, strict_json


def save_adapter(model: Any, folder: Path, label_names: Sequence[str]) -> None:
    """Write a PEFT folder (`adapter_config.json`, safetensors) with `labels.json`, whole or not at all."""
    temporary, before = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old"))
    with disk_errors(folder):
        try:
            model.save_pretrained(str(temporary))
            (temporary / "labels.json").write_text(json.dumps({"labels": list(label_names)}, indent=2) + "\n")
            for file in temporary.iterdir():
                file.chmod(0o644)  # safetensors makes files that only their owner can read
            sync(temporary, *temporary.iterdir())
            if folder.exists():  # left by a run that was interrupted at this point
                os.replace(folder, before)
            os.replace(temporary, folder)
            sync(folder.parent)
        finally:
            for leftover in (temporary, before):
                shutil.rmtree(leftover, ignore_errors=True)


def read_labels(folder: Path) -> tuple[str, ...]:
    """The label names of a saved adapter, in the order of the logits.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / "labels.json"
    try:
        labels = strict_json(read_small(path))["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("its labels are not a list of texts")
        return tuple(labels)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read {path}: {error}; the run folder is damaged, so start the run again") from error
