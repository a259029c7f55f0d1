"""Computes from the parts of a run what it is bound to, and is the one place where a run that goes on is compared with
it.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fftmoe.backbones import fingerprint
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import Partition, RowsDigest
from fftmoe.errors import InputError
from fftmoe.records import ServerState, names
from fftmoe.report.environment import installed_version
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.load import load_examples
from fftmoe.setup.model import build_model
from fftmoe.setup.places import ELSEWHERE
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.site_request import privacy_asked
from fftmoe.store.bindings import Bindings, differences, require_same

# Packages that compute, read or write what a run depends on.
BOUND_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "safetensors")
MOST_NAMES = 10_000  # clients whose names are written down; of more, the digest of the names
OF_CLIENTS_ROWS = ("training rows", "division")  # bindings that follow from clients' rows
# Keys that are bound in another way or not at all: the engine says where and how fast a run computes, and the places of
# data and backbone may change as long as their contents do not.
ARITHMETIC = ("device", "precision", "micro_batch_size", "clients_per_batch", "prefix_cache")
"""Keys of `engine` that change numbers, if only their last bits. Another value is recorded, and needs no consent: a
person has named it where the run goes on."""
UNBOUND = ("engine", "trackers", "name", "start_from")


def bindings_of(experiment: Experiment, recipe: Recipe) -> dict[str, Any]:
    """Return what a run of this experiment is bound to.

    Args:
        recipe: as it is written into the run's folder, before `compose` changes it.
    """
    found = {
        "recipe": bound_recipe(recipe),
        "arithmetic": recipe.engine.model_dump(mode="json", include=set(ARITHMETIC)),
        "privacy": privacy_asked(recipe).mode,
        "labels": list(experiment.label_names or experiment.strata),
        **_clients_by_name(experiment),
        **rows_values(experiment.rows),
        "tokenizer": experiment.reader,
        "backbone": fingerprint(experiment.model),
        "versions": versions(),
        **({} if experiment.start is None else {"start": experiment.start.digest}),
    }
    return _publishable(recipe, found)


def _publishable(recipe: Recipe, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without digests of clients' rows, if the run has differential privacy.

    A digest is an exact function of the rows: who guesses them can check the guess. Such a run cannot notice that its
    training rows have changed.
    """
    if recipe.privacy is None or not recipe.privacy.differential:
        return values
    return {name: value for name, value in values.items() if name not in OF_CLIENTS_ROWS}


def inputs_of(recipe: Recipe, plugins: Plugins | None = None) -> dict[str, Any]:
    """Return what a run of this recipe would read now: rows, labels, tokenizer, backbone, and the versions of the
    software.

    Args:
        plugins: that the recipe may name.

    Raises:
        InputError: the data or the backbone cannot be read.
    """
    data = load_examples(recipe)
    labels = {"labels": list(data.label_names)} if data.label_names else {}
    backbone = fingerprint(build_model(recipe, data.label_names, plugins))
    found = {
        **labels,
        **rows_values(data.rows),
        "tokenizer": data.reader,
        "backbone": backbone,
        "versions": versions(),
    }
    return _publishable(recipe, found)


def bound_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe that a run is bound to."""
    values = {name: value for name, value in recipe.model_dump(mode="json").items() if name not in UNBOUND}
    for section, key in ELSEWHERE:
        values[section] = {name: value for name, value in values[section].items() if name != key}
    return values


def rows_values(rows: Mapping[str, RowsDigest]) -> dict[str, Any]:
    """Return the bindings of the splits that were read."""
    named = {"training rows": "train", "test rows": "test", "owners of test rows": "test owners"}
    return {name: asdict(rows[split]) for name, split in named.items() if split in rows}


def versions() -> dict[str, str]:
    """Return the versions of this package, of the packages that it computes with, and of Python."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    return found | {package: installed_version(package) or "not installed" for package in ("fftmoe", *BOUND_PACKAGES)}


def _clients_by_name(experiment: Experiment) -> dict[str, Any]:
    """Return the clients by name, in their order; without names, their number and which examples each holds. Of a
    private run nobody writes the names down.
    """
    partition = experiment.partition
    if partition.groups is None:
        return {"population": {"clients": len(partition)}, "division": _division(partition)}
    names = [str(name) for name in partition.groups]
    whole = sha256(repr(names).encode()).hexdigest()
    named = experiment.client_names is not None and len(names) <= MOST_NAMES
    shown = {"names": names} if named else {}
    return {"population": {"clients": len(names), "sha256": whole, **shown}}


def _division(partition: Partition) -> str:
    found = sha256(partition.indices.offsets.astype("<i8").tobytes())
    found.update(partition.indices.flat.astype("<i8").tobytes())
    return found.hexdigest()


def check_unchanged(
    folder: Path, now: Mapping[str, Any], accept: bool, say: Callable[[str], None], after_round: int
) -> Bindings:
    """Compare what a run would continue with to what it began with; return what it is bound to from now on.

    Args:
        folder: of the run. now: see `bindings_of`.
        accept: continue in spite of changes with which that can be meaningful.
        say: shows a line to a person. after_round: the last round of the run so far.

    Raises:
        InputError: something has changed that is not accepted; the message says what. Nothing has been written.
    """
    began = Bindings.read(folder)
    if began is None:
        say(
            f"warning: {folder} does not record what this run began with, because an older version of fftmoe started "
            "it; whether data, backbone and clients are the same cannot be checked"
        )
        return Bindings(now)
    found = differences(_readable(began.values), {name: value for name, value in now.items() if name != "arithmetic"})
    accepted = require_same(
        f"the run in {folder} cannot continue", found, accept, "restore what it began with, or start a new run"
    )
    accepted += tuple(change.words for change in differences(began.values, {"arithmetic": now["arithmetic"]}))
    for words in accepted:
        say(f"accepted: {words}")
    worded = tuple(f"after round {after_round}: {words}" for words in accepted)
    return Bindings(now, (*began.accepted, *worded)) if accepted else began


def check_state(state: ServerState, initial: ServerState, folder: Path, modules: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a checkpoint whose global model is not one of this run's method, adapter and labels.

    Args:
        modules: d_in and d_out of the modules by path into which the method merges updates. What it has merged so far
            is part of the state, and grows from round to round.

    Raises:
        InputError: a tensor is missing, is one too many, or has another shape or type.
    """
    found, expected = ({name: (t.dtype, [*t.shape]) for name, t in s.tensors.items()} for s in (state, initial))
    merged = _merged_tensors(state, modules) | _merged_tensors(initial, modules)
    wrong = [name for name in sorted({*found, *expected} - merged) if found.get(name) != expected.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"the checkpoint of {folder} does not fit its recipe: {name} is {found.get(name, 'missing')} there and "
            f"{expected.get(name, 'missing')} in the recipe's model; restore config.yaml, or start a new run"
        )


def _merged_tensors(state: ServerState, modules: Mapping[str, tuple[int, int]]) -> set[str]:
    """Return the names of the merged factors, or sums, that fit their module."""
    fitting = set[str]()
    for path, (d_in, d_out) in modules.items():
        own = {part: names.merged_tensor(path, part) for part in names.MERGED_PARTS}
        parts = {part: state.tensors[name] for part, name in own.items() if name in state.tensors}
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        rank = shapes["A"][0] if shapes.get("A") else 0
        fits = shapes in ({"W": (d_out, d_in)}, {"A": (rank, d_in), "B": (d_out, rank)})
        if fits and all(tensor.dtype == torch.float32 for tensor in parts.values()):
            fitting |= {own[part] for part in parts}
    return fitting


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the recipe as this version of the package reads it, which may know more keys."""
    recipe = values.get("recipe")
    try:
        places = {"data": {"source": "."}, "backbone": {"model": "."}}
        whole = {**recipe, **{name: {**recipe[name], **place} for name, place in places.items()}}  # type: ignore[misc]
        return {**values, "recipe": bound_recipe(parse_recipe(whole, "of the beginning"))}
    except (InputError, TypeError, KeyError):
        return dict(values)
