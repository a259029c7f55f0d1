"""Makes the folder of an export, which appears whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fftmoe.backbones import load_reader
from fftmoe.store import SavedWith, check_output, disk_errors
from fftmoe.strict import json_text
from fftmoe.trained.run import FinishedRun

ABOUT = "export.json"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder to write into; it is renamed to `path` on success and removed on any error.

    Raises:
        InputError: `path` holds files, or cannot be made.
    """
    check_output(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            temporary.mkdir(parents=True)
        yield temporary
        with disk_errors(path):
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a folder inside another one that is gone afterwards."""
    scratch = folder / "scratch"
    with disk_errors(folder):
        scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with disk_errors(path):
        path.write_text(text)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented strict JSON."""
    write_text(path, json_text(values, indent=2) + "\n")


def beside(run: FinishedRun) -> SavedWith:
    """Return what lies in the folder of an exported adapter, besides its weights and the card, which comes later."""
    reader = load_reader(run.backbone.model, run.reads_images)
    return SavedWith(run.label_names, run.task, reader, temperature=run.temperature, label_shares=run.label_shares)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder and in the folders below it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
