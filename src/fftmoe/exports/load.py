"""Loads the bare backbone of a run, and opens an exported PEFT folder again, in float32 on the CPU."""

from pathlib import Path
from typing import Any

import torch

from fftmoe.backbones import load_adapter
from fftmoe.trained.load import bare_backbone
from fftmoe.trained.run import FinishedRun


def fresh_backbone(run: FinishedRun) -> Any:
    """Return the run's backbone without an adapter; the head has its initial values."""
    return bare_backbone(run, torch.device("cpu"))


def reload(run: FinishedRun, folder: Path) -> Any:
    """Return the model of an exported PEFT folder, opened as `PeftModel.from_pretrained` opens it."""
    return load_adapter(fresh_backbone(run), folder)
