"""What clients reach without the federation: each trains by itself, with the compute that it spends in a run."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.records import ServerState, Training
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.measure import ModelMeasure
from fftmoe.server.plan import plan_round


@dataclass(frozen=True)
class LocalTraining:
    """Trains clients locally from the initial state, for comparison with the federation.

    Attributes:
        rounds_each: how many rounds a client takes part in on average.
        exchange: sends the messages; it has a separate ledger, because local training is not a round of the run.
        num_clients: how many clients train, a fixed random sample; None: all.
    """

    measure: ModelMeasure
    exchange: Exchange
    training: Training
    rounds_each: float
    seed: int
    num_clients: int | None = None

    def __call__(self, initial: ServerState) -> dict[str, Any]:
        """Return the metrics of the locally trained models.

        Returns:
            the run's metric on a common sample of the test set (`local_only_...`), and on each client's own mix of
            strata (`local_only_client_...`). Clients without a valid answer are listed in `local_only_faults`.
        """
        m, ledger = self.measure, self.exchange.ledger
        chosen = m.population.sample(self.num_clients, self.seed)
        training = _repeated(self.training, self.rounds_each)
        budgets = m.population.budgets
        plan = plan_round(m.method, initial, 0, chosen, budgets, training, self.seed, task="alone")
        updates = self.exchange.updates(plan, partial(m.method.download, initial))
        metrics = [update.metrics for update in updates]
        metric = m.task.metric
        own = np.array([found[f"own_{metric}"] for found in metrics if f"own_{metric}" in found])
        result: dict[str, Any] = {}
        if metrics:
            common = m.spread(np.array([found[f"holdout_{metric}"] for found in metrics]))
            result[f"local_only_{metric}"] = {**common, "num_clients": len(metrics)}
        result |= m.spread_as(f"local_only_client_{metric}", own)
        if ledger.new_faults:
            result["local_only_faults"] = [fault._asdict() for fault in ledger.new_faults]
        return result


def _repeated(training: Training, times: float) -> Training:
    """The training of so many rounds in one."""
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
