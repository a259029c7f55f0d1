"""Where a run's data and backbone lie: a recipe names them from the folder in which the run was started."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fftmoe.store import Bindings

BEGAN_IN = "began in"
START = "start_from"  # a key without a section, which names a folder too
ELSEWHERE = (("data", "source"), ("backbone", "model"))  # a recipe's keys that can name local folders


def present_place() -> dict[str, str]:
    """The entry of a run's bindings that names the folder in which it is started, if there is one."""
    try:
        return {BEGAN_IN: os.path.realpath(".")}
    except OSError:  # somebody has removed the folder
        return {}


def place_of(folder: Path) -> dict[str, str]:
    """The same entry of a run that is there; empty where an older version of this package wrote none."""
    began = Bindings.read(folder)
    place = None if began is None else began.values.get(BEGAN_IN)
    return {BEGAN_IN: place} if isinstance(place, str) else {}


def from_its_place(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's `config.yaml`, with folders that lie where the run was started under their full names.

    Only names that mean something else here are changed: the run may be used from another folder. Where the former
    place has no such folder, because all of it was moved, the names stay.
    """
    place, made = place_of(folder).get(BEGAN_IN), dict(values)
    if place is None:
        return made
    for section, key in ELSEWHERE:
        own = made.get(section)
        if isinstance(own, dict) and _means_another_folder(own.get(key), Path(place)):
            made[section] = {**own, key: str(Path(place, own[key]))}
    if _means_another_folder(made.get(START), Path(place)):
        made[START] = str(Path(place, made[START]))
    return made


def _means_another_folder(name: Any, place: Path) -> bool:
    if not isinstance(name, str):
        return False
    there = place / name
    return not Path(name).is_absolute() and there.is_dir() and there.resolve() != Path(name).resolve()
