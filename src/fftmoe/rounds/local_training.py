"""Measures what clients reach without the federation: each trains by itself,
with the compute that it spends in a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.evaluate import mean_interval
from fftmoe.records import ServerState, Training
from fftmoe.rounds.before_and_after import WRITTEN
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.measure import ModelMeasure
from fftmoe.server.plan import plan_round


@dataclass(frozen=True)
class Alone:
    """States what clients reach by themselves.

    Attributes:
        metrics: for the summary. value: the mean of the run's metric over the clients on a common sample of the test
            rows; None if no client gave a valid answer. interval: the mean of their 95 % intervals; None if undefined.
        own: by client, the run's metric on its own test rows, or on rows reweighted to its strata, where it is known.
        written: by client, the scores of what its model writes after the prompts of its own test rows.
    """

    metrics: Mapping[str, Any]
    value: float | None
    interval: list[float] | None
    own: Mapping[int, float]
    written: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalTraining:
    """Trains clients locally from the initial state, for comparison with the federation.

    Attributes:
        training: of a client, for the whole run.
        exchange: sends the messages; it has a separate ledger, because local training is not a round of the run.
        num_clients: how many clients train, a fixed random sample; None: all.
    """

    measure: ModelMeasure
    exchange: Exchange
    training: Training
    seed: int
    num_clients: int | None = None

    def __call__(self, initial: ServerState) -> Alone:
        """Return what the locally trained models reach.

        Its metrics are the run's metric on a common sample of the test set (`local_only_...`), and that of each client
        by itself (`local_only_client_...`, or `reweighted_local_only_...`). Clients without a valid answer are listed
        in `local_only_faults`.
        """
        m, ledger = self.measure, self.exchange.ledger
        chosen = m.population.sample(self.num_clients, self.seed)
        plan = plan_round(m.method, initial, 0, chosen, m.population.budgets, self.training, self.seed, task="alone")
        updates = self.exchange.updates(plan, partial(m.method.download, initial))
        metrics = {update.client_id: update.metrics for update in updates}
        metric = m.task.metric
        own = {client: found[f"own_{metric}"] for client, found in metrics.items() if f"own_{metric}" in found}
        common = np.array([found[f"holdout_{metric}"] for found in metrics.values()])
        interval = _interval(list(metrics.values()), metric)
        result: dict[str, Any] = {}
        spread = m.spread(common)
        if spread:
            measured = {} if interval is None else {"interval": interval}
            result[f"local_only_{metric}"] = {**spread, "num_clients": len(common), **measured}
        result |= m.spread_as(f"{m.own_as('local_only', 'local_only_client')}_{metric}", np.array([*own.values()]))
        if ledger.new_faults:
            result["local_only_faults"] = [fault._asdict() for fault in ledger.new_faults]
        written = {
            client: {name: found[f"own_{name}"] for name in WRITTEN if f"own_{name}" in found}
            for client, found in metrics.items()
        }
        return Alone(result, spread.get("mean"), interval, own, written)


def _interval(metrics: Sequence[Mapping[str, float]], metric: str) -> list[float] | None:
    """Return the mean of the clients' intervals; None if one of them has none."""
    low, high = f"low_{metric}", f"high_{metric}"
    if not metrics or not all(low in found and high in found for found in metrics):
        return None
    return mean_interval([(found[low], found[high]) for found in metrics])


def repeated(training: Training, times: float) -> Training:
    """Return the training of so many rounds in one."""
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
