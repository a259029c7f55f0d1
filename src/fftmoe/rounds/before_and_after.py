"""Measures a language model on each client's own test rows: before the rounds, trained alone, and trained together.

Scores are the run's metric, at the tier of the client, and those of what the model writes after the prompts, at the
largest tier or, where the client trains alone, at its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fftmoe.rounds.measure import ModelMeasure

WRITTEN = ("exact_match", "rouge_l", "option_accuracy")
"""The scores of what a model writes."""
STARTS, STARTED = "start_of_clients", "start_of_samples"
"""The keys of the row of round 0 with the scores of each client, and with what the model writes."""

Generate = Callable[[], dict[str, Any]]
"""What the model as it is now writes: scores by client as `generated_by_client`, and `samples`."""


@dataclass(frozen=True)
class StartOfClients:
    """Measures the model before the first round as it is measured after the last.

    Attributes:
        names: of the clients, in their order.
    """

    measure: ModelMeasure
    generate: Generate
    names: Sequence[str]

    def __call__(self) -> dict[str, Any]:
        """Return the scores of each client and the samples, as the row of round 0 keeps them."""
        m, written = self.measure, self.generate()
        found = {STARTED: written.get("samples", [])}
        if m.own_test is None or not m.show_clients:
            return found
        own = m.tally(m.test, own=m.own_test).on_own().tolist()
        scores = scores_of(m.task.metric, self.names, own, written.get("generated_by_client", {}))
        return {STARTS: [[name, values] for name, values in scores.items()], **found}


def scores_of(
    metric: str, names: Sequence[str], values: Sequence[float | None], written: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the scores of each client, by its name; those that are unknown are left out."""
    found: dict[str, dict[str, float]] = {}
    for name, value in zip(names, values, strict=True):
        own = {} if value is None or np.isnan(value) else {metric: round(value, 4)}
        own |= {key: round(written[name][key], 4) for key in WRITTEN if key in written.get(name, {})}
        if own:
            found[name] = own
    return found


def before_and_after(
    row: Mapping[str, Any],
    together: Mapping[str, Mapping[str, float]],
    alone: Mapping[str, Mapping[str, float]],
    personal: Mapping[str, Mapping[str, float]] | None,
) -> dict[str, dict[str, Mapping[str, float]]]:
    """Return the scores `before`, `alone`, `together` and `personal` of each client.

    Args:
        row: of round 0. together: after the last round. alone: of clients that trained by themselves. personal: of the
            clients that keep a part for themselves; the others use what all have together. None where nobody does.
    """
    before: dict[str, Mapping[str, float]] = dict(row.get(STARTS, ()))
    stages = {"before": before, "alone": alone, "together": together}
    if personal is not None:
        stages["personal"] = {**together, **personal}
    return {
        name: {stage: scores[name] for stage, scores in stages.items() if name in scores}
        for name in together
        if name in before
    }


def samples_of(row: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the prompts that are shown: each with its completion, and with what was written `before` and `after`."""
    pairs = zip(row.get(STARTED, ()), metrics.get("samples", ()), strict=False)
    return [
        {"prompt": b["prompt"], "completion": b["completion"], "before": b["written"], "after": a["written"]}
        for b, a in pairs
    ]
