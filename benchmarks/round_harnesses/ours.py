"""Our rounds as `fftmoe run` makes them: packed messages, client states and checkpoints on the disk, one process."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from fftmoe.config import load_recipe
from fftmoe.report.progress import Progress
from fftmoe.setup.run import run
from fftmoe.store import unpack_state

from .task import now, report


class Clock(Progress):
    """Notes when each round ended; a run tells its progress after all else in a round is done."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.times: list[float] = []

    def round_done(self, row: Mapping[str, Any]) -> None:
        """The first call is for the state before round 1."""
        super().round_done(row)
        self.times.append(now())


def rounds(folder: Path, output: Path) -> tuple[list[float], dict[str, Tensor]]:
    """A whole run; when round 1 began and each round ended, and the final global model."""
    clock = Clock()
    run(load_recipe(str(folder / "recipe.yaml")), output, clock)
    state = unpack_state(max((output / "checkpoints").glob("*.safetensors")).read_bytes())
    return clock.times, state.tensors


def main(folder: str, final: str) -> None:
    torch.set_num_threads(1)
    # Beside the task and not in memory: a run's files go to a disk.
    with tempfile.TemporaryDirectory(dir=folder) as output:
        times, tensors = rounds(Path(folder), Path(output) / "run")
    report(times, tensors, Path(final))


if __name__ == "__main__":
    main(*sys.argv[1:])
