"""The run folder: every file is written whole or not at all, and a run never continues from a damaged file."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fftmoe.errors import InputError
from fftmoe.records import ServerState
from fftmoe.store.checkpoints import Checkpoints
from fftmoe.store.client_states import ClientStateFiles
from fftmoe.store.files import DamagedFileError, disk_errors, make_folder, remove_temporaries, sync, write_atomically
from fftmoe.strict import json_text, read_small, strict_yaml

MARGIN_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Saved:
    """What a run continues from: its newest intact checkpoint.

    Attributes:
        state: the server state; None before the end of the first round.
        metrics: the lines of `metrics.jsonl` up to this checkpoint.
        passed_over: newer checkpoints that are damaged, each with the reason.
    """

    state: ServerState | None = None
    metrics: bytes = b""
    passed_over: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics`, one for each round."""
        return [json.loads(line) for line in self.metrics.splitlines()]


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `summary.json`, `metrics.jsonl`, `adapter/`, `checkpoints/`, `clients/`, `report.html`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], needed_bytes: int) -> "RunFolder":
        """Make a new run folder with its resolved recipe.

        Raises:
            InputError: the folder holds another run or other files, it cannot be made, or the disk has fewer than
                `needed_bytes` and a margin left. Nothing has been written then.
        """
        nearest = check_output(path)
        free = shutil.disk_usage(nearest).free
        if free < needed_bytes + MARGIN_BYTES:
            raise InputError(
                f"the disk of {nearest} has {free / 2**20:.0f} MiB left and the run needs about "
                f"{(needed_bytes + MARGIN_BYTES) / 2**20:.0f} MiB; free some space, or name another disk with --output"
            )
        with disk_errors(path):
            make_folder(path)
            write_atomically(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
            cls(path)._make_folders()
        return cls(path)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        with disk_errors(self.path), self.checkpoints.metrics.open("a") as file:
            file.write(json_text(row) + "\n")

    def all_metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`."""
        with disk_errors(self.checkpoints.metrics):
            return [json.loads(line) for line in self.checkpoints.metrics.read_bytes().splitlines()]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` as strict JSON."""
        text = json_text(summary, indent=2)
        write_atomically(self.path / "summary.json", text.encode() + b"\n")

    def write_report(self, page: str) -> None:
        """Write `report.html`."""
        write_atomically(self.path / "report.html", page.encode())

    def save_state(self, state: ServerState) -> None:
        """Save a checkpoint after a round whose row has been written; it is on the disk when this returns."""
        metrics = self.checkpoints.metrics
        with disk_errors(metrics):
            sync(self.path, *([metrics] if metrics.exists() else []), *self.client_states.take_unsynced())
        self.checkpoints.save(state)

    def load_newest(self) -> Saved:
        """The newest checkpoint that is intact together with its rows and the states of clients; no file is changed.

        Raises:
            InputError: the run got beyond its first round, and no checkpoint is intact.
        """
        rounds, passed_over = self.checkpoints.rounds(), list[str]()
        for round in rounds:
            try:
                state, metrics = self.checkpoints.load(round)
                self.client_states.check(round)
            except DamagedFileError as reason:
                passed_over.append(f"round {round}: {reason}")
            else:
                return Saved(state, metrics, tuple(passed_over))
        if max(self._rounds_in_metrics(), *rounds, 0) < 2:  # the first checkpoint may not have been completed
            return Saved(passed_over=tuple(passed_over))
        reasons = ". ".join(passed_over) or "none exists although metrics.jsonl has rows of several rounds"
        raise InputError(
            f"the run in {self.path} has no intact checkpoint to continue from ({reasons}); "
            "restore its files, or start a new run"
        )

    def rewind(self, saved: Saved) -> None:
        """Remove what came after this checkpoint, because those rounds are repeated."""
        round = saved.state.round if saved.state else 0
        with disk_errors(self.path):
            self._make_folders()
            self.checkpoints.forget_after(round)
            write_atomically(self.checkpoints.metrics, saved.metrics)
            self.client_states.forget_after(round)
            remove_temporaries(self.path)

    def _make_folders(self) -> None:
        for name in ("checkpoints", "clients"):
            make_folder(self.path / name)

    def _rounds_in_metrics(self) -> int:
        metrics = self.checkpoints.metrics
        return (
            max(0, metrics.read_bytes().count(b"\n") - 1) if metrics.exists() else 0
        )  # the first row belongs to no round

    @property
    def checkpoints(self) -> Checkpoints:
        """The server states of the last rounds."""
        return Checkpoints(self.path)

    @property
    def client_states(self) -> ClientStateFiles:
        """The states of this run's clients."""
        return ClientStateFiles(self.path / "clients", durable=False)  # `save_state` forces them to the disk


def check_output(path: Path) -> Path:
    """Check that a run can be written to `path`, and return the nearest existing folder at or above it.

    Raises:
        InputError: the folder holds another run or other files, or cannot be made.
    """
    if path.is_dir() and any(path.iterdir()):
        what = "another run" if (path / "config.yaml").exists() else "other files"
        raise InputError(f"the output folder {path} holds {what}; name a new one with --output or remove it")
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot make the output folder {path}: {nearest} is a file; name another with --output")
    return nearest


def read_run(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a finished run.

    Raises:
        InputError: the folder is not a run, is damaged, or the run did not finish.
    """
    recipe = read_config(folder)
    if not (folder / "adapter" / "adapter_config.json").is_file():
        raise InputError(
            f"the run in {folder} did not finish: it has no adapter/; finish it first: fftmoe resume {folder}"
        )
    return recipe


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        InputError: the run has not finished, or the file is damaged.
    """
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; finish the run first: fftmoe resume {folder}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run, finished or not.

    Raises:
        InputError: the folder is not a run, or is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.yaml; pass the --output of `fftmoe run`")
    try:
        values = strict_yaml(read_small(folder / "config.yaml"))
        if not isinstance(values, dict):
            raise ValueError("it holds no sections")
        return values
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {folder / 'config.yaml'}: {error}; the run folder is damaged, so start the run again"
        ) from error
