"""Measures the model of a finished run on labelled examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fftmoe.backbones import with_references
from fftmoe.data import Examples, default_cache_dir, own_rows, sorted_names
from fftmoe.evaluate import tally
from fftmoe.trained.generate import generation_metrics
from fftmoe.trained.run import TrainedModel


def metrics_on(
    trained: TrainedModel,
    examples: Examples,
    strata: Sequence[str],
    owners: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Return the task's metrics of a trained model on examples.

    Args:
        strata: the names of what the labels of `examples` number: the classes, or another division of the examples
            where the task has no classes.
        owners: the name of the client of each example; None where nobody says whose they are.

    Returns:
        `metric`, the name of the task's main metric; every metric under its name; `num_examples`; the main metric
        within each stratum, if there are several, as `accuracy_by_label`, `perplexity_by_label` and so on, and on each
        client's own examples as `accuracy_by_client`; and the metrics of generated text where the run measures them,
        likewise as `generated_by_label` and `generated_by_client`.
    """
    clients = sorted_names(name for name in owners or () if name is not None)
    own = own_rows(clients, owners or ())
    run, task = trained.run, trained.run.judging_task
    examples = referenced(trained, examples)
    found = tally(trained.model, task, examples, len(strata), own=own)
    metrics = {"metric": task.metric, **found.metrics(), "num_examples": len(examples)}
    if len(strata) > 1:
        by_label = zip(strata, found.by_stratum(), strict=True)
        metrics[f"{task.metric}_by_label"] = {name: float(value) for name, value in by_label if not np.isnan(value)}
    if own is not None:
        metrics[f"{task.metric}_by_client"] = dict(zip(clients, map(float, found.on_own()), strict=True))
    if run.generation is None:
        return metrics
    groups: dict[str, Sequence[str | None]] = {}
    if len(strata) > 1:
        groups["label"] = [strata[int(number)] for number in examples.labels]
    if own is not None:
        groups["client"] = owners or ()
    return metrics | generation_metrics(trained.model, run.backbone.model, examples, run.generation, groups)


def referenced(trained: TrainedModel, examples: Examples) -> Examples:
    """Return the examples as the run's loss reads them: pairs of answers with what the frozen backbone says of them."""
    pairs = trained.run.pair_loss
    if pairs is None or not pairs.has_reference:
        return examples
    return with_references(trained.model, examples, default_cache_dir())
