"""The engine that a recipe asks for."""

import os
from functools import partial

from fftmoe.engines.base import Engine
from fftmoe.engines.local import make_engine
from fftmoe.experiment.compose import ClientSpec, Experiment, build_client, holdout
from fftmoe.store import RunFolder


def open_engine(experiment: Experiment, folder: RunFolder) -> Engine:
    """Clients of this experiment, which keep their states in the run's folder; to be closed."""
    recipe = experiment.recipe  # compose may have changed it
    workers = recipe.engine.workers
    if workers == "auto":
        workers = min(os.cpu_count() or 1, recipe.federation.clients_per_round)
    spec = ClientSpec(
        recipe,
        experiment.label_names,
        experiment.method,
        experiment.train,
        experiment.partition.indices,
        folder.client_states,
        holdout(experiment.test, recipe.evaluation.local_only_examples, recipe.seed),
    )
    handler = build_client(spec, experiment.model) if workers == 1 else None
    return make_engine(workers, partial(build_client, spec), handler)
