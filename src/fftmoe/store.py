"""The run folder: every file is written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from safetensors import SafetensorError

from fftmoe.errors import InputError, OutputError
from fftmoe.records import ServerState, Tensors, pack, unpack

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

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """`summary.json`, strict JSON."""
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_atomically(self.path / "summary.json", text.encode() + b"\n")

    def write_report(self, page: str) -> None:
        """`report.html`."""
        write_atomically(self.path / "report.html", page.encode())

    def save_state(self, state: ServerState) -> None:
        """`checkpoints/latest.safetensors`: the whole server state after a round."""
        write_atomically(self.path / "checkpoints" / "latest.safetensors", pack_state(state))

    @property
    def client_states(self) -> "ClientStateFiles":
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


@dataclass(frozen=True)
class ClientStateFiles:
    """One safetensors file per client that has kept something."""

    folder: Path

    def load(self, client_id: int) -> Tensors:
        """Empty for a client that has kept nothing yet."""
        path = self._path(client_id)
        return safetensors.torch.load(path.read_bytes()) if path.exists() else {}

    def save(self, client_id: int, state: Tensors) -> None:
        """Replace the client's state, atomically.

        It is not forced to the disk: that takes longer than a small client's training, and whoever loses power loses
        the round as well.
        """
        if state:
            write_atomically(self._path(client_id), pack({}, state), durable=False)

    def _path(self, client_id: int) -> Path:
        return self.folder / f"{client_id:06d}.safetensors"


GROUPS = ("tensors", "optimizer", "load", "average")  # of tensors in a server state


def pack_state(state: ServerState) -> bytes:
    """The server state as safetensors with a JSON header; equal states give equal bytes."""
    groups = {name: getattr(state, name) for name in GROUPS}
    flat = {f"{group}/{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
    return pack({"round": state.round, "preferences": state.preferences}, flat)


def unpack_state(data: bytes) -> ServerState:
    """Inverse of `pack_state`."""
    header, flat = unpack(data)
    groups: dict[str, Tensors] = {name: {} for name in GROUPS}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    preferences = {
        int(client): {int(block): tuple(ids) for block, ids in blocks.items()}
        for client, blocks in header["preferences"].items()
    }
    return ServerState(round=header["round"], preferences=preferences, **groups)


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write to a temporary file beside `path`, force it to the disk if `durable`, rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a refusal to write (full disk, no permission) into one message for a person."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {reason}; free space or name another place with --output") from error


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


def read_run(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a finished run.

    Raises:
        InputError: the folder is not a run, is damaged, or the run did not finish.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder} is not a run folder: it has no config.yaml; pass the --output of `fftmoe run`")
    if not (folder / "adapter" / "adapter_config.json").is_file():
        raise InputError(f"the run in {folder} did not finish: it has no adapter/; run it again into a new folder")
    try:
        return yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's messages take several lines
        raise InputError(
            f"cannot read {folder / 'config.yaml'}: {reason}; the run's folder is damaged, run it again"
        ) from error
