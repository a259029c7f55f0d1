"""The run folder: every file is written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fftmoe.errors import InputError
from fftmoe.records import ServerState
from fftmoe.store.client_states import ClientStateFiles
from fftmoe.store.files import disk_errors, write_atomically
from fftmoe.store.server_state import pack_state, unpack_state

MARGIN_BYTES = 64 * 2**20


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `summary.json`, `metrics.jsonl`, `adapter/`, `checkpoints/`, `clients/`, `report.html`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], needed_bytes: int) -> "RunFolder":
        """Make a new run folder with its resolved recipe.

        Raises:
            InputError: the folder holds another run or other files, cannot be made, or the disk has less than
                `needed_bytes` (with a margin) left. Nothing has been written then.
        """
        nearest = check_output(path)
        free = shutil.disk_usage(nearest).free
        if free < needed_bytes + MARGIN_BYTES:
            raise InputError(
                f"the disk of {nearest} has {free / 2**20:.0f} MiB left and the run needs about "
                f"{(needed_bytes + MARGIN_BYTES) / 2**20:.0f} MiB; free some, or name another disk with --output"
            )
        with disk_errors(path):
            for folder in (path, path / "checkpoints", path / "clients"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())
        return cls(path)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`."""
        with disk_errors(self.path), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, round: int) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` up to this round; what comes after it is removed."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off
        rows = [row for row in map(json.loads, whole) if row["round"] <= round]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """`summary.json`, strict JSON."""
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_atomically(self.path / "summary.json", text.encode() + b"\n")

    def write_report(self, page: str) -> None:
        """`report.html`."""
        write_atomically(self.path / "report.html", page.encode())

    def save_state(self, state: ServerState) -> None:
        """`checkpoints/latest.safetensors`: the whole server state after a round."""
        write_atomically(self._checkpoint, pack_state(state))

    def load_state(self) -> ServerState | None:
        """What was saved last; None before the end of the first round."""
        return unpack_state(self._checkpoint.read_bytes()) if self._checkpoint.exists() else None

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoints" / "latest.safetensors"

    @property
    def client_states(self) -> ClientStateFiles:
        """Where this run's clients keep their state."""
        return ClientStateFiles(self.path / "clients")


def check_output(path: Path) -> Path:
    """The nearest folder that exists at or above `path`, where a run could be written.

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
            f"the run in {folder} did not finish: it has no adapter/; go on with it: fftmoe resume {folder}"
        )
    return recipe


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a run, finished or not.

    Raises:
        InputError: the folder is not a run, or is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.yaml; pass the --output of `fftmoe run`")
    try:
        return yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's messages take several lines
        raise InputError(
            f"cannot read {folder / 'config.yaml'}: {reason}; the run's folder is damaged, run it again"
        ) from error
