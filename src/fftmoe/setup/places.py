"""Finds where a run's data and backbone lie: a recipe names them from the folder in which the run was started.

A server and its sites are started in other folders, mostly on other machines. So what a server sends names no place of
its own (`for_sites`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, looked_up
from fftmoe.setup.site_request import is_folder
from fftmoe.store import Bindings

BEGAN_IN = "began in"
START = "start_from"  # a key without a section, which names a folder too
ELSEWHERE = (("data", "source"), ("backbone", "model"))  # a recipe's keys that can name local folders
OF_SERVER = "the server's own"  # in place of a source that only the server reads


def present_place() -> dict[str, str]:
    """Return the entry of a run's bindings that names the folder in which it is started, if there is one."""
    try:
        return {BEGAN_IN: os.path.realpath(".")}
    except OSError:  # somebody has removed the folder
        return {}


def place_of(folder: Path) -> dict[str, str]:
    """Return the same entry of a run that is there; empty where an older version of this package wrote none."""
    began = Bindings.read(folder)
    place = None if began is None else began.values.get(BEGAN_IN)
    return {BEGAN_IN: place} if isinstance(place, str) else {}


def from_its_place(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a run's `config.yaml`, with folders that lie where the run was started under their full
    names.

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


def for_sites(values: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Return the values of a recipe as a server sends them: without its own places and the encoding of its own files,
    and a backbone's folder by its full name.

    Each site reads its own rows. A site on the same machine finds the backbone from wherever it was started; one on
    another machine reads its own (`--model`).

    Args:
        place: the folder in which the run was started.
    """
    data, backbone = values["data"], values["backbone"]
    sent = {**values, "data": {**data, "source": OF_SERVER, "encoding": None}}
    sent["backbone"] = {**backbone, "model": full_model(backbone["model"], place)}
    return {**sent, START: "off"} if START in values else sent


def full_model(model: str, place: Path) -> str:
    """Return the name of a backbone, which means the same in every folder of this machine; only folders change.

    Args:
        place: the folder from which the name is meant.
    """
    with looked_up(f"model folder {model!r:.200}"):
        return str(place / Path(model).expanduser()) if is_folder(model) else model


def check_means_the_same(model: str) -> None:
    """Refuse a backbone that is a folder here, by a name that elsewhere is that of a model of the hub.

    Raises:
        InputError: it is one; no site has been asked.
    """
    with looked_up(f"model folder {model!r:.200}"):
        is_here = Path(model).is_dir()
    if is_here and not is_folder(model) and not model.startswith("builtin:"):
        raise InputError(
            f"backbone.model={model} is a folder here, and a site would look for a model of that name on the hub; "
            f"write ./{model} if you mean the folder, and have each site name its own with --model"
        )


def check_same_from_anywhere(model: str) -> None:
    """Refuse a backbone whose folder depends on where this process was started, for a site.

    Raises:
        InputError: the name of the folder is not a full one.
    """
    if is_folder(model) and not Path(model).is_absolute():
        raise InputError(
            f"the server names the backbone {model!r}, which is another folder in each place where a site is started; "
            "start this site with --model and the folder that it should read"
        )
