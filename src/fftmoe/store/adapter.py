"""Reads and writes the saved adapter: a PEFT folder together with the names of the labels,
and with what it is bound to.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.bound import ADAPTER_CONFIG, BOUND, LABELS, describe_adapter
from fftmoe.adapter.pooling import MeanPoolClassifier
from fftmoe.adapter.saved_head import PROBLEM_TYPES, TASK_TYPES
from fftmoe.errors import InputError
from fftmoe.head import are_shares, usable
from fftmoe.store.files import PRIVATE_FILE, PRIVATE_FOLDER, disk_errors, sync
from fftmoe.strict import exact_json, read_small, strict_json

ADAPTER, LAST_ADAPTER = "adapter", "adapter-last"  # the model that a run keeps; that of its last round, if another
KEPT_ROUND, LAST_ROUND = "kept", "last"


class Reader(Protocol):
    """Is a tokenizer or an image processor of transformers."""

    def save_pretrained(self, save_directory: str, /) -> Any:
        """Write its files into a folder."""
        ...


def adapter_of(run: Path, round: str = KEPT_ROUND) -> Path:
    """Return the folder with a finished run's model.

    Args:
        round: `kept` for the model that the run keeps, `last` for that of its last round; mostly they are one.

    Raises:
        InputError: `round` is another word.
    """
    if round not in (KEPT_ROUND, LAST_ROUND):
        raise InputError(f"there is no round {round!r} to choose; use {KEPT_ROUND} or {LAST_ROUND}")
    last = run / LAST_ADAPTER
    return last if round == LAST_ROUND and last.is_dir() else run / ADAPTER


@dataclass(frozen=True)
class SavedWith:
    """Holds what lies in the folder of an adapter besides its weights, so that others can use it.

    Attributes:
        label_names: of the head's outputs, in their order; empty for a language model.
        task: such as "sequence-classification"; None where it is not known.
        reader: the tokenizer or the image processor of the backbone; None to leave it out.
        card: README.md, the model card; None leaves it out, because PEFT's is a form that nobody has filled in.
        temperature: by which the outputs of a solved head have been divided; None for any other.
        label_shares: of all clients' rows, in the order of the labels; None where they are not known.
    """

    label_names: Sequence[str]
    task: str | None = None
    reader: Reader | None = None
    card: str | None = None
    temperature: float | None = None
    label_shares: Sequence[float] | None = None


def save_adapter(model: Any, folder: Path, beside: SavedWith, private: bool = True) -> None:
    """Write a PEFT folder with `labels.json`, and `bound.json` (`adapter/bound.py`), whole or not at all.

    Args:
        beside: what else is written.
        private: only the owner can read it; otherwise the permissions are the usual ones of the process.
    """
    temporary, before = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old"))
    with disk_errors(folder):
        try:
            model.save_pretrained(str(temporary))
            _settle_config(temporary / ADAPTER_CONFIG, model, beside.task)
            write_beside(temporary, beside)
            (temporary / BOUND).write_text(exact_json(describe_adapter(temporary, model), indent=1) + "\n")
            _set_permissions(temporary, private)
            sync(temporary, *temporary.iterdir())
            if folder.exists():  # left by a run that was interrupted at this point
                os.replace(folder, before)
            os.replace(temporary, folder)
            sync(folder.parent)
        finally:
            for leftover in (temporary, before):
                shutil.rmtree(leftover, ignore_errors=True)


def write_beside(folder: Path, beside: SavedWith) -> None:
    """Write the labels, the reader and the card into a folder that exists."""
    (folder / "README.md").unlink(missing_ok=True)
    if beside.card is not None:
        (folder / "README.md").write_text(beside.card)
    if beside.reader is not None:
        beside.reader.save_pretrained(str(folder))
    kind = PROBLEM_TYPES.get(beside.task or "")
    labels: dict[str, Any] = {"labels": list(beside.label_names), **({"problem_type": kind} if kind else {})}
    if beside.temperature is not None:
        labels["temperature"] = beside.temperature
    if beside.label_shares is not None:
        labels["label_shares"] = list(beside.label_shares)
    (folder / LABELS).write_text(exact_json(labels, indent=2) + "\n")


def _settle_config(path: Path, model: Any, task: str | None) -> None:
    """Sort what PEFT keeps as a set, and name the task as PEFT does.

    The task is left out of a LoRA on pooled features: PEFT would put it on a model of transformers without these.
    """
    config = model.peft_config["default"]
    sort_sets(path, config)
    own = isinstance(config, MoeAdapterConfig) or not isinstance(model.get_base_model(), MeanPoolClassifier)
    if own and task in TASK_TYPES:
        values = {**json.loads(path.read_text()), "task_type": TASK_TYPES[task]}
        path.write_text(exact_json(values, indent=2, sort_keys=True))


def sort_sets(path: Path, config: Any) -> None:
    """Sort in a written configuration what PEFT keeps as a set, whose order in the file differs between processes."""
    sets = {name for name, value in vars(config).items() if isinstance(value, (set, frozenset))}
    if sets:
        values = {name: sorted(v) if name in sets else v for name, v in json.loads(path.read_text()).items()}
        path.write_text(exact_json(values, indent=2, sort_keys=True))


def _set_permissions(folder: Path, private: bool) -> None:
    """Give a folder and its files equal permissions; safetensors makes files that only their owner can read."""
    usual = (folder / LABELS).stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(PRIVATE_FILE if private else usual)
        elif private:
            path.chmod(PRIVATE_FOLDER)
    if private:
        folder.chmod(PRIVATE_FOLDER)


def read_labels(folder: Path) -> tuple[str, ...]:
    """Return the label names of a saved adapter, in the order of the logits.

    Raises:
        InputError: the file is missing or damaged.
    """
    return read_said(folder).labels


def read_temperature(folder: Path) -> float | None:
    """Return the temperature by which the outputs of a saved head have been divided; None if they have not.

    Raises:
        InputError: the file is missing or damaged.
    """
    return read_said(folder).temperature


class Said(NamedTuple):
    """Holds what `labels.json` of a saved adapter says: the labels in the order of the logits, the temperature by which
    the outputs of a solved head have been divided, and the shares of the labels; None where it says nothing.
    """

    labels: tuple[str, ...]
    temperature: float | None
    label_shares: tuple[float, ...] | None


def read_said(folder: Path) -> Said:
    """Return what `labels.json` of a saved adapter says.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / LABELS
    try:
        said = strict_json(read_small(path))
        labels, temperature = said["labels"], said.get("temperature")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("its labels are not a list of texts")
        if temperature is not None and not (isinstance(temperature, float) and usable(temperature)):
            raise ValueError(f"its temperature is {temperature!r}")
        shares = said.get("label_shares")
        if shares is not None and not (are_shares(shares) and len(shares) == len(labels)):
            raise ValueError("its label_shares are not a share for each label")
        return Said(tuple(labels), temperature, None if shares is None else tuple(shares))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"cannot read {path}: {error}; the run folder is damaged, so start the run again") from error
