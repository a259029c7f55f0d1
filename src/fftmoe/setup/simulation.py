"""The clients of a run in Flower's simulation: each of its processes makes the whole experiment from the recipe."""

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
from fftmoe.setup.compose import Experiment, compose
from fftmoe.store import ClientStateFiles, RunFolder, read_config


def open_simulation(experiment: Experiment, folder: RunFolder) -> Engine:
    """Flower's simulation, as large as the recipe's `engine` says.

    Raises:
        InputError: Flower is not installed.
    """
    try:
        from fftmoe.engines.flower_messages import make_client_app
        from fftmoe.engines.flower_simulation import FlowerSimulation
    except ImportError as error:
        raise InputError(f"engine.kind=flower needs {error.name}: pip install 'fftmoe[flower]'") from error
    recipe = experiment.recipe
    workers = os.cpu_count() or 1 if recipe.engine.workers == "auto" else recipe.engine.workers
    return FlowerSimulation(
        make_client_app(serve, _ready),
        job={"recipe": read_config(folder.path), "states": str(folder.client_states.folder.absolute())},
        num_clients=experiment.num_clients,
        workers=min(workers, recipe.federation.clients_per_round),
        deadline_seconds=recipe.federation.deadline_seconds,
        address=recipe.engine.ray_address,
    )


def serve(job: Mapping[str, Any], context: object) -> Handler:
    """The clients of this job; made once in a process."""
    return _clients(json.dumps(job, sort_keys=True))


def _ready(job: Mapping[str, Any], context: object) -> Mapping[str, Any]:
    """Made before the first round, whose deadline would else have to hold for it."""
    serve(job, context)
    return {}


@lru_cache(maxsize=1)
def _clients(job: str) -> Handler:
    values = json.loads(job)
    experiment = compose(parse_recipe(values["recipe"], "the run"))
    spec = client_spec(experiment, ClientStateFiles(Path(values["states"])))
    return build_client(spec, experiment.model)
