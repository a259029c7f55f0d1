"""Measures clients' own models: what each client downloads, together with what it keeps."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fftmoe.client.compress import split_state
from fftmoe.client.runtime import ClientStates
from fftmoe.data import Examples
from fftmoe.evaluate import mean_interval
from fftmoe.records import ServerState, Training
from fftmoe.rounds.measure import ModelMeasure, OwnCorrected
from fftmoe.server.plan import plan_round


@dataclass(frozen=True)
class PersonalModels:
    """Measures clients' own models on a sample of the test set.

    Attributes:
        sample: the held-out examples.
        num_clients: how many clients are measured, a fixed random sample; None: all.
    """

    measure: ModelMeasure
    sample: Examples
    training: Training
    seed: int
    num_clients: int | None = None

    def __call__(self, state: ServerState, states: ClientStates) -> dict[str, Any]:
        """Measure each chosen client's own model.

        Returns:
            the task's metrics are means over clients on the whole sample, with the mean of the clients' 95 % intervals;
            the clients' own values are named as `ModelMeasure.own` says.
        """
        m, metric = self.measure, self.measure.task.metric
        chosen = m.population.sample(self.num_clients, self.seed)
        plan = plan_round(m.method, state, state.round, chosen, m.population.budgets, self.training, self.seed)
        overall: list[dict[str, float]] = []
        intervals: list[tuple[float, float]] = []
        own, corrected = np.zeros(len(chosen)), OwnCorrected.unknown(len(chosen))
        for place, client in enumerate(plan.clients):
            c = client.client_id
            kept, _ = split_state(states.load(c, before=state.round + 1))
            m.method.personalize(m.model, m.method.download(state, client), client, kept)
            found, own[place], answers = m.of_client(state, c, self.sample)
            if answers is not None:
                corrected.put([place], answers)
            overall.append(found.metrics())
            intervals.append(found.interval())
        values = {name: np.array([metrics[name] for metrics in overall]) for name in overall[0]}
        members = {tier.name: m.population.budgets.members(tier) for tier in m.population.tiers}
        places = {name: np.flatnonzero(np.isin(chosen, clients)) for name, clients in members.items()}
        return {
            **{name: float(each.mean()) for name, each in values.items()},
            f"{metric}_interval": mean_interval(intervals),
            f"{metric}_by_tier": {name: float(values[metric][at].mean()) for name, at in places.items() if len(at)},
            **m.spread_as(f"{m.own}_{metric}", own),
            **m.by_client(chosen, own, corrected),
        }

    def next_to_global(self, state: ServerState, states: ClientStates) -> dict[str, Any]:
        """Measure clients' own models, and the global model on the same clients and examples."""
        m, metric = self.measure, self.measure.task.metric
        own = self(state, states).get(f"{m.own}_{metric}")
        if own is None:  # no test row belongs to one of these clients, or is of a kind that it has
            return {}
        _, per_client, _ = m.at_each_tier(state, self.sample if m.own_test is None else m.test)
        chosen = list(m.population.sample(self.num_clients, self.seed))
        shared = {f"global_{name}": value for name, value in m.spread(per_client[chosen]).items()}
        return {f"{m.own_as('personal')}_{metric}": {**own, **shared}}
