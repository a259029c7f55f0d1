"""Opens the engine that a recipe names."""

import os
from functools import partial

from fftmoe.config import Recipe
from fftmoe.engines.base import Engine
from fftmoe.engines.local import make_engine
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.simulation import open_simulation
from fftmoe.store import RunFolder


def open_engine(experiment: Experiment, folder: RunFolder) -> Engine:
    """Open the engine for the clients of this experiment. Client states are in `folder`; the caller closes the engine.

    Raises:
        RunError: it could not start.
    """
    recipe = experiment.recipe  # `compose` may have changed it
    if recipe.engine.kind == "flower":
        return open_simulation(experiment, folder)
    workers = num_workers(recipe)
    spec = client_spec(experiment, folder.client_states, folder.own_parts)
    handler = build_client(spec, experiment.model) if workers == 1 else None
    return make_engine(workers, partial(build_client, spec), handler)


def num_workers(recipe: Recipe) -> int:
    """Return the number of processes that train clients."""
    workers = recipe.engine.workers
    return min(os.cpu_count() or 1, recipe.federation.clients_per_round) if workers == "auto" else workers
