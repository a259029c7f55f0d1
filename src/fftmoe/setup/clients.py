"""Makes the handler for the clients of an experiment, in this process or in a worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from fftmoe.backbones import enable_resume
from fftmoe.client.runtime import ClientRuntime, ClientStates, OwnParts
from fftmoe.client.update import NO_EXAMPLE
from fftmoe.client.validation import validation_sums
from fftmoe.config import Recipe
from fftmoe.data import Examples, Ragged, cached_states
from fftmoe.evaluate import client_metrics, holdout, tally
from fftmoe.methods.base import Method
from fftmoe.records import Tensors
from fftmoe.rounds.before_and_after import WRITTEN
from fftmoe.setup.described import generation_sample
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import judging_task, make_answers, make_loss
from fftmoe.setup.model import build_model
from fftmoe.setup.plugins import Plugins
from fftmoe.tasks import Task
from fftmoe.trained.generate import generation_metrics


@dataclass(frozen=True)
class ClientSpec:
    """Holds the values from which a worker process builds its `ClientRuntime`; unlike a model, they can be pickled."""

    recipe: Recipe
    label_names: tuple[str, ...]
    method: Method
    train: Examples
    partition: Sequence[np.ndarray]
    states: ClientStates
    holdout: Examples
    plugins: Plugins = field(default_factory=Plugins)
    held_out: Sequence[np.ndarray] = ()  # rows that clients have set aside for validation, by client
    test: Examples | None = None  # of which the rows of each client follow
    own_test: Sequence[np.ndarray] | None = None  # by client; None where nobody says whose test rows are
    own_parts: ClientStates | None = None  # keeps what clients train for themselves; None where they do not


def client_spec(experiment: Experiment, states: ClientStates, own_parts: ClientStates | None = None) -> ClientSpec:
    """Describe the clients of this experiment, which keep their states in `states`, and what they train for themselves
    in `own_parts`.
    """
    recipe, rows = experiment.recipe, experiment.partition.indices
    return ClientSpec(
        recipe,
        experiment.label_names,
        experiment.method,
        experiment.train,
        Ragged(marked(rows.flat, experiment.left_out), rows.offsets),
        states,
        holdout(experiment.test, recipe.evaluation.local_only_examples, recipe.seed),
        experiment.plugins,
        experiment.held_out.rows,
        None if experiment.own_test is None else experiment.test,
        experiment.own_test,
        own_parts,
    )


def _measured(spec: ClientSpec, task: Task, model: Any, client_id: int, own_labels: Tensor) -> Mapping[str, float]:
    """Return what a client measures of its own model after local training."""
    if spec.test is None or spec.own_test is None:
        return client_metrics(model, own_labels, task, spec.holdout)
    rows = spec.own_test[client_id]
    found = client_metrics(model, own_labels, task, spec.holdout, spec.test.select(rows))
    return {**found, **_written(spec, spec.test, model, rows)}


def _measured_on_own(spec: ClientSpec, task: Task, model: Any, client_id: int) -> Mapping[str, float]:
    """Return what a client measures of a model on its own test rows; nothing where it has none."""
    if spec.test is None or spec.own_test is None or not len(rows := spec.own_test[client_id]):
        return {}
    own = spec.test.select(rows)
    value = tally(model, task, own, 1 + int(own.labels.max())).metrics()[task.metric]
    return {f"own_{task.metric}": value, **_written(spec, spec.test, model, rows)}


def _written(spec: ClientSpec, test: Examples, model: Any, rows: np.ndarray) -> dict[str, float]:
    """Return the scores of what the model writes after the prompts of these test rows that are in the sample."""
    if (asked := generation_sample(spec.recipe)) is None:
        return {}
    written = generation_metrics(model, spec.recipe.backbone.model, test, asked, among=set(rows.tolist()))
    return {f"own_{name}": written[name] for name in WRITTEN if name in written}


def marked(rows: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Return the indices of rows, with `NO_EXAMPLE` in place of those that nothing may be learnt from
    (`Splits.left_out`).
    """
    return np.where(left_out[rows], NO_EXAMPLE, rows) if left_out.any() else rows


def build_client(spec: ClientSpec, model: Any = None) -> ClientRuntime:
    """Make the handler of an engine's messages, with the given model; None loads a new model."""
    if model is None:
        model = build_model(spec.recipe, spec.label_names, spec.plugins)
        for examples in (spec.train, spec.holdout, spec.test):
            if (states := cached_states(examples)) is not None:
                enable_resume(model, states.block)
    task, num_outputs = judging_task(spec.recipe), len(spec.label_names)
    own = None
    if spec.own_parts is not None:
        own = OwnParts(spec.own_parts, spec.held_out, partial(_measured_on_own, spec, task))
    return ClientRuntime(
        model,
        spec.method,
        make_loss(spec.recipe),
        num_outputs,
        spec.train,
        spec.partition,
        spec.states,
        partial(_measured, spec, task),
        partial(validation_sums, task=task, num_outputs=num_outputs, examples=spec.train, rows=spec.held_out),
        micro_batch_size=spec.recipe.engine.micro_batch_size,
        answers=make_answers(spec.recipe),
        own=own,
    )


class NoStates:
    """Holds client states that are always empty and never written to the disk."""

    def load(self, client_id: int, before: int) -> Tensors:
        """See `ClientStates`."""
        return {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """See `ClientStates`."""
