"""The saved adapter: a PEFT folder together with the names of the labels, and with what it is bound to."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fftmoe.adapter.bound import ADAPTER_CONFIG, BOUND, describe_adapter
from fftmoe.errors import InputError
from fftmoe.store.files import PRIVATE_FILE, PRIVATE_FOLDER, disk_errors, sync
from fftmoe.strict import exact_json, read_small, strict_json

ADAPTER, LAST_ADAPTER = "adapter", "adapter-last"  # the model that a run keeps; that of its last round, if another
KEPT_ROUND, LAST_ROUND = "kept", "last"


def adapter_of(run: Path, round: str = KEPT_ROUND) -> Path:
    """The folder with a finished run's model.

    Args:
        round: `kept` for the model that the run keeps, `last` for that of its last round; mostly they are one.

    Raises:
        InputError: `round` is another word.
    """
    if round not in (KEPT_ROUND, LAST_ROUND):
        raise InputError(f"there is no round {round!r} to choose; use {KEPT_ROUND} or {LAST_ROUND}")
    last = run / LAST_ADAPTER
    return last if round == LAST_ROUND and last.is_dir() else run / ADAPTER


def save_adapter(
    model: Any, folder: Path, label_names: Sequence[str], private: bool = True, card: str | None = None
) -> None:
    """Write a PEFT folder with `labels.json`, and `bound.json` (`adapter/bound.py`), whole or not at all.

    Args:
        card: README.md, the model card; None leaves it out, because PEFT's is a form that nobody has filled in.
        private: only the owner can read it; otherwise the permissions are the usual ones of the process.
    """
    temporary, before = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old"))
    with disk_errors(folder):
        try:
            model.save_pretrained(str(temporary))
            _write_card(temporary / "README.md", card)
            _sort_sets(temporary / ADAPTER_CONFIG, model)
            (temporary / "labels.json").write_text(exact_json({"labels": list(label_names)}, indent=2) + "\n")
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


def _write_card(path: Path, card: str | None) -> None:
    path.unlink(missing_ok=True)
    if card is not None:
        path.write_text(card)


def _sort_sets(path: Path, model: Any) -> None:
    """Sort what PEFT keeps as a set, such as LoRA's modules, whose order in the file differs between processes."""
    config = model.peft_config["default"]
    sets = {name for name, value in vars(config).items() if isinstance(value, (set, frozenset))}
    if sets:
        written = json.loads(path.read_text())
        values = {name: sorted(value) if name in sets else value for name, value in written.items()}
        path.write_text(exact_json(values, indent=2, sort_keys=True))


def _set_permissions(folder: Path, private: bool) -> None:
    """Give a folder and its files equal permissions; safetensors makes files that only their owner can read."""
    usual = (folder / "labels.json").stat().st_mode & 0o777
    for file in folder.iterdir():
        file.chmod(PRIVATE_FILE if private else usual)
    if private:
        folder.chmod(PRIVATE_FOLDER)


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
