"""Opens Flower's simulation; each of its processes composes the whole experiment from the recipe."""

import importlib.util
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.config import Recipe, parse_recipe
from fftmoe.engines.base import Engine, Handler
from fftmoe.errors import InputError
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.places import from_its_place
from fftmoe.store import ClientStateFiles, RunFolder, read_config
from fftmoe.strict import exact_json


def check_simulation(recipe: Recipe) -> None:
    """Refuse a recipe that asks for Flower's simulation if Flower or Ray, which it runs on, is not installed.

    Raises:
        InputError: one of them is missing.
    """
    missing = [name for name in ("flwr", "ray") if importlib.util.find_spec(name) is None]
    if recipe.engine.kind == "flower" and missing:
        raise InputError(
            f"engine.kind=flower needs {' and '.join(missing)}: pip install 'fftmoe[simulation]', or set "
            "engine.kind=local, which gives the same bytes"
        )


def open_simulation(experiment: Experiment, folder: RunFolder) -> Engine:
    """Return Flower's simulation with the number of workers, or on the Ray cluster, that the recipe names.

    Raises:
        RunError: the simulation could not start.
    """
    from fftmoe.engines.flower_messages import make_client_app
    from fftmoe.engines.flower_simulation import FlowerSimulation

    recipe = experiment.recipe
    workers = os.cpu_count() or 1 if recipe.engine.workers == "auto" else recipe.engine.workers
    return FlowerSimulation(
        make_client_app(_serve, _prepare, own=True),
        job={
            "recipe": from_its_place(folder.path, read_config(folder.path)),
            "states": str(folder.client_states.folder.absolute()),
            "own_parts": str(folder.own_parts.folder.absolute()),
        },
        num_clients=experiment.num_clients,
        workers=min(workers, recipe.federation.clients_per_round),
        deadline_seconds=recipe.federation.deadline_seconds,
        address=recipe.engine.ray_address,
    )


def _serve(job: Mapping[str, Any], context: object) -> Handler:
    """Return the handler for the clients of this job; each process makes it once."""
    return _make_handler(exact_json(job, sort_keys=True))


def _prepare(job: Mapping[str, Any], context: object) -> Mapping[str, Any]:
    """Make the clients before the first round, so that this does not count toward its deadline."""
    _serve(job, context)
    return {}


@lru_cache(maxsize=1)
def _make_handler(job: str) -> Handler:
    values = json.loads(job)
    experiment = compose(parse_recipe(values["recipe"], "the run"))
    states, own_parts = (ClientStateFiles(Path(values[name])) for name in ("states", "own_parts"))
    spec = client_spec(experiment, states, own_parts)
    return build_client(spec, experiment.model)
