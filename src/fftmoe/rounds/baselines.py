"""Measures what a run's result is compared with: baselines, each with its interval,
or with the reason why it has none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fftmoe.data import Examples
from fftmoe.records import ServerState, names
from fftmoe.rounds.measure import ModelMeasure

HEAD_ONLY = "head_only"
"""The name of the baseline, and the beginning of the keys under which the row of round 0 has it."""

BeforeRounds = Callable[[ServerState, Mapping[str, Any]], dict[str, Any]]
"""From the state before the first round and its metrics to what else its row has."""


def nothing_before(state: ServerState, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return nothing: the head alone is not measured."""
    return {}


def baseline(value: float, interval: Sequence[float] | None) -> dict[str, Any]:
    """Return the entry of a baseline that was measured; its interval is None where it is undefined."""
    defined = interval is not None and bool(np.isfinite(np.asarray(interval, dtype=float)).all())
    return {"value": value, "interval": list(interval) if interval is not None and defined else None}


def no_baseline(reason: str) -> dict[str, Any]:
    """Return the entry of a baseline that was not measured."""
    return {"value": None, "interval": None, "reason": reason}


@dataclass(frozen=True)
class HeadAlone:
    """Measures the frozen backbone with a solved head, without what the rounds train.

    Attributes:
        solve: gives a state that adds nothing to the backbone its closed-form head; None if too few clients answer. A
            model without a head is measured as it is.
        is_start: whether the state before the first round is this model.
        sample: the test rows on which that state is measured in any case.
        more: what else is measured of this model.
    """

    measure: ModelMeasure
    solve: Callable[[ServerState], ServerState | None]
    is_start: bool
    sample: Examples
    more: Callable[[], dict[str, Any]] = dict

    def __call__(self, state: ServerState, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the run's metric and its interval on all test rows, as the row of round 0 has them."""
        m, metric = self.measure, self.measure.task.metric
        if self.is_start and len(self.sample) == len(m.test) and metric in metrics:
            found = metrics
        else:
            solved = state if self.is_start else self.solve(without_adapter(state))
            if solved is None:
                return {}
            m.install(solved, m.population.largest)
            found = m.with_interval(m.tally(m.test, interval=True))
        return {**{f"{HEAD_ONLY}_{name}": found[name] for name in (metric, f"{metric}_interval")}, **self.more()}


def without_adapter(state: ServerState) -> ServerState:
    """Return the state of the same model whose adapter adds nothing to the backbone: its last layers are zero."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.tensors.items() if names.is_last_layer(name)}
    return replace(state, tensors={**state.tensors, **zeros})


def head_only_of(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the entry of the head alone from the row of round 0."""
    value = row.get(f"{HEAD_ONLY}_{metric}")
    if value is None:
        return no_baseline("it was not measured before the first round: too few clients sent feature statistics")
    return baseline(value, row.get(f"{HEAD_ONLY}_{metric}_interval"))
