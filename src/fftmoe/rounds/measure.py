"""Measures the metrics of a run: the global model at every tier, on everyone's test rows and on those of each client.

Where the test rows say whose they are, a client's own value is measured on its own rows, `client_...` in the summary.
Where they do not, all test rows are reweighted to the client's mix of strata, which says nothing about how its rows
differ from others of the same label: `reweighted_...`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fftmoe.data import Examples, Ragged
from fftmoe.evaluate import Observe, Tally, mean_and_worst_decile, tally, unobserved
from fftmoe.methods.base import Method
from fftmoe.records import Budget, ServerState
from fftmoe.rounds.own_answers import Corrections, OnOwnMixes, OnOwnRows, OwnLabels
from fftmoe.rounds.own_choice import Choice
from fftmoe.rounds.population import Population
from fftmoe.tasks import Task

ROWS_AT_ONCE = 4096  # of clients' shares of strata
CLIENTS_KEPT = 200  # of more clients, the summary keeps percentiles
# Keys of the values of clients with their personal answers, of how strongly these are corrected for their labels, of
# what each client chose, and of how much better that is on the rows by which it chose, in nats.
PERSONAL, STRENGTH, CHOICE, CHOICE_MARGIN = "personal", "prior_strength", "answer", "margin"
OWN_PREFIX, REWEIGHTED_PREFIX = "client", "reweighted"  # before the name of a metric of single clients


class OwnCorrected(NamedTuple):
    """Holds the metric of each client with its personal answers, float64 [clients], NaN where it is unknown; and what
    each client chose, None where nobody knows.
    """

    values: np.ndarray
    choices: list[Choice | None]

    @classmethod
    def unknown(cls, num_clients: int) -> "OwnCorrected":
        """Return that of clients of which nothing is known."""
        return cls(np.full(num_clients, np.nan), [None] * num_clients)

    def put(self, places: Sequence[int], measured: "OnOwnRows | OnOwnMixes") -> None:
        """Enter what was measured of the clients at these places."""
        self.values[list(places)] = measured.values()
        for place, choice in zip(places, measured.corrections.choices, strict=True):
            self.choices[place] = choice

    def listed(self) -> dict[str, list[Any]]:
        """Return the lists of the summary; nothing where no value is known."""
        if np.isnan(self.values).all():
            return {}
        return {
            PERSONAL: _listed(self.values),
            STRENGTH: [None if own is None else own.strength for own in self.choices],
            CHOICE: [None if own is None else own.name for own in self.choices],
            CHOICE_MARGIN: [None if own is None else round(own.margin, 4) for own in self.choices],
        }


@dataclass(frozen=True)
class ModelMeasure:
    """Measures models on held-out examples.

    Attributes:
        test: all held-out examples.
        num_strata: how many labels, or other strata, the examples are numbered by.
        show_clients: whether the summary may list clients one by one. fewest: clients of which a mean must be.
        own_test: by client, its own rows of `test`; None where nobody says whose they are.
        own_labels: how often clients have each label; None where nobody may know.
    """

    model: Any
    method: Method
    task: Task
    test: Examples
    num_strata: int
    population: Population
    show_clients: bool = True
    fewest: int = 1
    own_test: Ragged | None = None
    own_labels: OwnLabels | None = None

    @property
    def own(self) -> str:
        """Return how a client's own value is measured, as the summary names it: `client` or `reweighted`."""
        return REWEIGHTED_PREFIX if self.own_test is None else OWN_PREFIX

    def own_as(self, model: str, on_own_rows: str | None = None) -> str:
        """Return the beginning of a key for another model's values of single clients, such as `personal`.

        Args:
            on_own_rows: the key where clients have test rows of their own, if it is another.
        """
        return (on_own_rows or model) if self.own == OWN_PREFIX else f"{REWEIGHTED_PREFIX}_{model}"

    @property
    def key_of_own(self) -> str:
        """Return the key under which the summary lists the values of single clients: the metric,
        or what replaces it.
        """
        return self.task.metric if self.own == OWN_PREFIX else f"{REWEIGHTED_PREFIX}_{self.task.metric}"

    def tally(
        self,
        examples: Examples,
        interval: bool = False,
        own: Ragged | None = None,
        count_labels: bool = False,
        observe: Observe = unobserved,
        head_inputs: bool = False,
    ) -> Tally:
        """Return the statistics of the model as it is now."""
        return tally(
            self.model, self.task, examples, self.num_strata, interval, own, count_labels, observe, head_inputs
        )

    def of_client(
        self, state: ServerState, client: int, sample: Examples
    ) -> "tuple[Tally, float, OnOwnRows | OnOwnMixes | None]":
        """Measure the model as it is now, which is that of one client.

        Args:
            state: with what is known of all clients' labels. sample: of the test rows.

        Returns:
            its statistics on the sample; its metric on the client's own rows, or on the sample reweighted to its
            strata, NaN where it is unknown; and what measured its personal answers, None where there are none.
        """
        corrections = None if self.own_labels is None else self._chosen(self.own_labels, state, [client])
        if self.own_test is not None:
            found, rows = self.tally(sample, interval=True), self.own_test[client]
            if not len(rows):
                return found, math.nan, None
            everything = Ragged.of([np.arange(len(rows))])
            own = None if corrections is None else OnOwnRows(self.task, corrections, [0], everything, len(rows))
            value = self._seen(self.test.select(rows), own).metrics()[self.task.metric]
            return found, value, own
        assert self.population.label_shares is not None, "clients are measured where something is known of them"
        mix = self.population.label_shares(range(client, client + 1))
        mixed = None if corrections is None else OnOwnMixes(self.task, corrections, sample.labels, mix)
        found = self._seen(sample, mixed, interval=True)
        return found, float(found.on_mixes(mix)[0]), mixed

    def _seen(self, examples: Examples, answers: "OnOwnRows | OnOwnMixes | None", **options: Any) -> Tally:
        """Return the statistics, and let these answers be measured with them."""
        if answers is None:
            return self.tally(examples, **options)
        return self.tally(examples, observe=answers, head_inputs=answers.corrections.need_head_inputs, **options)

    def with_interval(self, found: Tally) -> dict[str, Any]:
        """Return the metrics, and the interval of the run's metric under `..._interval`: None where it is undefined."""
        interval = list(found.interval())
        known = all(map(math.isfinite, interval))
        return {**found.metrics(), f"{self.task.metric}_interval": interval if known else None}

    def in_full(self, found: Tally) -> dict[str, Any]:
        """Return the same, and the counts of labels as `labels` where the task has labels."""
        counts = {} if found.labels is None else {"labels": found.labels.values()}
        return {**self.with_interval(found), **counts}

    def install(self, state: ServerState, budget: Budget) -> None:
        """Put the global model into the model, as a client of this budget would use it."""
        self.method.install(self.model, state.tensors, budget)

    def spread(self, values: np.ndarray) -> dict[str, float]:
        """Return the mean over the clients with a value, and over the worst tenth of them, as far as these are enough
        clients.
        """
        return mean_and_worst_decile(values, self.task.higher_is_better, self.fewest)

    def spread_as(self, key: str, values: np.ndarray) -> dict[str, Any]:
        """Return `spread` under this key of the summary, which has no such key if no value is known."""
        return {key: found} if (found := self.spread(values)) else {}

    def by_client(
        self, clients: Sequence[int], values: np.ndarray, corrected: OwnCorrected | None = None
    ) -> dict[str, Any]:
        """Return `clients` of the summary: the value and the tier of each client, or percentiles of very many.

        Args:
            corrected: those with their personal answers; None where nobody has any.
        """
        known, key = ~np.isnan(values), self.key_of_own
        if not self.show_clients or not known.any():
            return {}
        if len(values) > CLIENTS_KEPT:
            return {"clients": {"of": key, "percentiles": np.percentile(values[known], range(101)).round(4).tolist()}}
        personal = {} if corrected is None else corrected.listed()
        tiers = [self.population.budgets[client].name for client in clients]
        names = {} if self.population.names is None else {"name": [self.population.names[c] for c in clients]}
        return {"clients": {**names, "tier": tiers, key: _listed(values), **personal}}

    def at_each_tier(
        self, state: ServerState, examples: Examples, in_full: bool = False
    ) -> tuple[dict[str, dict[str, Any]], np.ndarray, OwnCorrected]:
        """Measure the global model as each tier uses it.

        Args:
            examples: all test rows where `own_test` is known.
            in_full: also compute the interval of the largest tier's metric, which takes many samples of the examples,
                and count labels as this tier predicts them.

        Returns:
            the metrics by tier; and for every client its own metric at its tier, float64 [clients], NaN where that is
            unknown; and the same with the personal answers of the clients that can be listed.
        """
        by_tier, per_client = {}, np.full(len(self.population), np.nan)
        corrected = OwnCorrected.unknown(len(self.population))
        for tier in self.population.tiers:
            self.install(state, tier)
            full = in_full and tier == self.population.largest
            members = self.population.budgets.members(tier)
            listed = members if in_full and self.show_clients and len(self.population) <= CLIENTS_KEPT else ()
            own = self.own_answers(state, [int(client) for client in listed], examples)
            found = self._seen(examples, own, interval=full, own=self.own_test, count_labels=full)
            by_tier[tier.name] = self.in_full(found) if full else found.metrics()
            if own is not None:
                corrected.put(members.tolist(), own)
            if self.own_test is not None:
                per_client[members] = found.on_own()[members]
            elif self.population.label_shares is not None:
                per_client[members] = self._on_own_mixes(found, self.population.label_shares)[members]
        return by_tier, per_client, corrected

    def own_answers(
        self, state: ServerState, clients: Sequence[int], examples: Examples
    ) -> "OnOwnRows | OnOwnMixes | None":
        """Return what measures the answers of these clients while the model is measured on all of these examples; None
        where clients cannot correct its outputs.
        """
        found = None if self.own_labels is None or not clients else self._chosen(self.own_labels, state, clients)
        if found is None:
            return None
        if self.own_test is not None:
            return OnOwnRows(self.task, found, clients, self.own_test, len(examples))
        if self.population.label_shares is None:
            return None
        mixes = [self.population.label_shares(range(client, client + 1)) for client in clients]
        return OnOwnMixes(self.task, found, examples.labels, np.concatenate(mixes))

    def _chosen(self, labels: OwnLabels, state: ServerState, clients: Sequence[int]) -> Corrections | None:
        """Return how these clients correct the outputs of the model as it is now."""
        return labels.chosen(
            state, clients, lambda rows, observe, head: self.tally(rows, observe=observe, head_inputs=head)
        )

    def _on_own_mixes(self, found: Tally, label_shares: Callable[[range], np.ndarray]) -> np.ndarray:
        """Return the metric on each client's own mix of strata, float64 [clients]."""
        everyone = range(len(self.population))
        # In parts, because the shares of very many clients would take more memory than the model.
        parts = (everyone[start : start + ROWS_AT_ONCE] for start in everyone[::ROWS_AT_ONCE])
        return np.concatenate([found.on_mixes(label_shares(part)) for part in parts])

    def globally(self, state: ServerState) -> dict[str, Any]:
        """Measure the global model at each tier's budget, on the whole test set."""
        by_tier, per_client, corrected = self.at_each_tier(state, self.test, in_full=True)
        metric = self.task.metric
        one_by_tier = {name: metrics[metric] for name, metrics in by_tier.items()}
        overall = {**by_tier[self.population.largest.name], f"{metric}_by_tier": one_by_tier}
        each = self.by_client(range(len(self.population)), per_client, corrected)
        return {**overall, **self.spread_as(f"{self.own}_{metric}", per_client), **each}


def _listed(values: np.ndarray) -> list[float | None]:
    """Return values for the summary, rounded; None for those that are unknown."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
