"""How long a client of average size takes for some steps of training, timed in this process."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fftmoe.data.batches import POOL_BATCHES
from fftmoe.records import Budget, ServerState, Tensors, pack_plan
from fftmoe.rng import numpy_generator
from fftmoe.server.plan import plan_round
from fftmoe.setup.build import build_method, fit_budgets
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import Experiment
from fftmoe.setup.stacking import clients_at_once


class TimedClient:
    """The real client of an experiment (its backbone, batches, messages), with as many examples as clients have.

    Its rows are drawn from everyone's, so that texts are as long as on average. Where a run trains several clients at
    once, so does this. The model is left with what was trained last, as after a round.

    Args:
        state: what `method.init` gave for the fresh model.
    """

    def __init__(self, experiment: Experiment, state: ServerState) -> None:
        self._experiment, self._state = experiment, state
        self._num_rows = max(1, round(float(experiment.partition.sizes.mean())))
        random = numpy_generator(experiment.recipe.seed, "timing")
        chosen = random.choice(len(experiment.train), self._num_rows, replace=False)
        self._clients = range(min(clients_at_once(experiment), experiment.recipe.federation.clients_per_round))
        self._runtime = replace(
            build_client(client_spec(experiment, _NothingKept()), experiment.model),
            partition=dict.fromkeys(self._clients, chosen),
        )

    def steps(self) -> float:
        """Of an average client in a round."""
        training = self._experiment.training
        if training.local_steps is not None:
            return float(training.local_steps)
        batches = -(-self._experiment.partition.sizes // training.batch_size)
        return (training.local_epochs or 1) * float(batches.mean())

    def sample_steps(self) -> int:
        """The fewest steps whose batches hold texts of every length, as those of a whole round do."""
        batches = math.ceil(self._num_rows / self._experiment.training.batch_size)
        return max(1, min(POOL_BATCHES, batches, round(self.steps())))

    def seconds(self, budget: Budget, steps: int, now: Callable[[], float] = time.perf_counter) -> float:
        """Of one client with this budget for so many steps, message in to message out, on one thread.

        Args:
            budget: a tier of the experiment, or any other that is within its blocks and its pool.
        """
        messages = self._messages(budget, steps)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as clients compute
        try:
            started = now()
            self._runtime(messages)
            return (now() - started) / len(messages)
        finally:
            torch.set_num_threads(threads)

    def _messages(self, budget: Budget, steps: int) -> Sequence[bytes]:
        experiment, recipe = self._experiment, self._experiment.recipe
        [budget] = fit_budgets(recipe, experiment.model, [budget], experiment.shape)
        # Beside it a client of each tier: methods with one rank for all take that of the smallest.
        budgets = dict(enumerate(experiment.tiers, start=len(self._clients))) | dict.fromkeys(self._clients, budget)
        method = build_method(recipe, experiment.model, experiment.shape, budgets)
        self._runtime = replace(self._runtime, method=method)
        training = replace(experiment.training, local_steps=steps, local_epochs=None)
        plan = plan_round(method, self._state, 1, self._clients, budgets, training, recipe.seed)
        return [pack_plan(client, method.download(self._state, client)) for client in plan.clients]


class _NothingKept:
    """Clients that begin anew each time, and leave nothing on the disk."""

    def load(self, client_id: int, before: int) -> Tensors:
        """See `ClientStates`."""
        return {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """See `ClientStates`."""
