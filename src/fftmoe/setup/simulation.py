"""Opens Flower's simulation; each of its processes composes the whole experiment from the recipe."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.config import parse_recipe
from fftmoe.engines.base import Engine, Handler
from fftmoe.errors import InputError
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.store import ClientStateFiles, RunFolder, read_config


def open_simulation(experiment: Experiment, folder: RunFolder) -> Engine:
    """Flower's simulation with the number of workers, or on the Ray cluster, that the recipe names.

    Raises:
        InputError: Flower is not installed. RunError: the simulation could not start.
    """
    try:
        from fftmoe.engines.flower_messages import make_client_app
        from fftmoe.engines.flower_simulation import FlowerSimulation
    except ImportError as error:
        raise InputError(f"engine.kind=flower needs {error.name}: pip install 'fftmoe[flower]'") from error
    recipe = experiment.recipe
    workers = os.cpu_count() or 1 if recipe.engine.workers == "auto" else recipe.engine.workers
    return FlowerSimulation(
        make_client_app(_serve, _prepare, own=True),
        job={"recipe": read_config(folder.path), "states": str(folder.client_states.folder.absolute())},
        num_clients=experiment.num_clients,
        workers=min(workers, recipe.federation.clients_per_round),
        deadline_seconds=recipe.federation.deadline_seconds,
        address=recipe.engine.ray_address,
    )


def _serve(job: Mapping[str, Any], context: object) -> Handler:
    """The handler for the clients of this job; each process makes it once."""
    return _make_handler(json.dumps(job, sort_keys=True))


def _prepare(job: Mapping[str, Any], context: object) -> Mapping[str, Any]:
    """Make the clients before the first round, so that this does not count toward its deadline."""
    _serve(job, context)
    return {}


@lru_cache(maxsize=1)
def _make_handler(job: str) -> Handler:
    values = json.loads(job)
    experiment = compose(parse_recipe(values["recipe"], "the run"))
    spec = client_spec(experiment, ClientStateFiles(Path(values["states"])))
    return build_client(spec, experiment.model)
