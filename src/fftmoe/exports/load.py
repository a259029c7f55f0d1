"""The run to export, and what was exported, as models in float32 on the CPU."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fftmoe.backbones import load_adapter
from fftmoe.errors import InputError
from fftmoe.trained.load import Trained, load_run, own_backbone

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        trained: its model, with the `top_k` asked for. summary: what `summary.json` says.
    """

    folder: Path
    trained: Trained
    summary: dict[str, Any]


def open_run(folder: Path, top_k: int | None) -> Source:
    """A run's model and what is known of it.

    Raises:
        InputError: as `load_run`; it has no summary.
    """
    trained = load_run(folder, top_k, exact=True)
    return Source(folder, trained, read_summary(folder))


def read_summary(folder: Path) -> dict[str, Any]:
    """What the run says of itself.

    Raises:
        InputError: it has not ended, or the file is damaged.
    """
    try:
        return json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {folder / 'summary.json'}: {error}; go on with the run: fftmoe resume {folder}"
        ) from error


def fresh_backbone(trained: Trained) -> Any:
    """The run's backbone without an adapter, its head as it starts."""
    return own_backbone(trained.recipe, trained.label_names, torch.device("cpu"))


def reload(trained: Trained, folder: Path) -> Any:
    """What lies in an exported PEFT folder, as `PeftModel.from_pretrained` opens it."""
    return load_adapter(fresh_backbone(trained), folder)
