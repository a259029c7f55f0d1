"""Says how often each label occurs among the rows that a client trains on, where that may be known."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import torch

from fftmoe.config import Recipe
from fftmoe.data import Examples, Partition, Ragged, WithPrefix
from fftmoe.evaluate import Observe, tally
from fftmoe.head import LabelAnswers, LabelTotals
from fftmoe.records import ServerState
from fftmoe.rounds.own_answers import OwnLabels, OwnRows
from fftmoe.tasks import Task, label_form
from fftmoe.trained.prior import OwnAnswer

MOST_CHOOSING = 1024  # rows of each kind by which a client chooses, and to which it fits a private part
MOST_OF_ALL = 20_480  # such rows of all clients together, so that many clients do not take longer than their training
READ_AT_ONCE = 1024  # rows whose labels are read together


def own_labels(
    recipe: Recipe, num_outputs: int, train: Examples, partition: Partition, held_out: Ragged, remote: bool
) -> OwnLabels | None:
    """Return what is known of the labels of each client; None for a task without labels, where clients are elsewhere,
    and with differential privacy, whose guarantee does not cover exact counts.

    Args:
        num_outputs: of the head. train: the examples of all clients. partition: whose they are. held_out: by client,
            the rows that it has set aside.
        remote: whether clients are elsewhere.
    """
    answers = label_form(recipe.backbone.task, None if recipe.head is None else recipe.head.kind)
    if answers is None or remote or recipe.differential:
        return None
    count = partial(totals_of, train, num_outputs=num_outputs, answers=answers)

    most = min(MOST_CHOOSING, max(1, MOST_OF_ALL // len(partition.indices)))

    def rows(client: int) -> OwnRows:
        return OwnRows(spread(partition.indices[client], most), spread(held_out[client], most))

    def totals(client: int) -> LabelTotals:
        return count(partition.indices[client])

    @cache  # of tags it reads all rows, and every tier and every client's own model asks for it
    def everyones() -> tuple[float, ...]:
        return tuple(count(partition.indices.flat).shares(answers).tolist())

    solved = recipe.closed_form is not None  # its sums say everyone's shares, also where clients are elsewhere
    return OwnLabels(answers, totals, train, rows, solved, count=None if solved else everyones)


def own_answer(
    own: OwnLabels, client: int, model: Any, task: Task, label_shares: Sequence[float], temperature: float | None
) -> OwnAnswer:
    """Return how a client uses the answers of the model as it is now.

    Args:
        model: its outputs are logits. label_shares: everyone's. temperature: by which those of its head were divided.
    """

    def show(rows: Examples, observe: Observe, head_inputs: bool) -> None:
        tally(model, task, rows, 1 + int(rows.labels.max()), observe=observe, head_inputs=head_inputs)

    state = ServerState(0, {}, label_shares=tuple(label_shares), temperature=temperature)
    found = replace(own, divided=True).chosen(state, [client], show)
    assert found is not None, "everyone's shares are known"
    everyones = own.answers.logits_of(torch.tensor(label_shares, dtype=torch.float64))
    (choice,) = found.choices
    shares_C = own.answers.probabilities(everyones + choice.strength * found.shifts[0].double())
    return OwnAnswer(shares_C, choice.strength, choice.part)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most this many of these rows, evenly spread over them: neighbours are often alike."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def totals_of(examples: Examples, rows: np.ndarray, num_outputs: int, answers: LabelAnswers) -> LabelTotals:
    """Return how often each label occurs among these rows, int64 [N]; at least one.

    Args:
        num_outputs: of the head.
    """
    if answers.one_each and answers.exclusive:  # the class of each example is known without its inputs
        return LabelTotals.of(examples.labels[torch.from_numpy(rows)], num_outputs, answers)
    plain = examples.examples if isinstance(examples, WithPrefix) else examples  # no states are needed
    parts = (plain.batch(part)["labels"] for part in np.array_split(rows, 1 + len(rows) // READ_AT_ONCE))
    items = (answers.items(labels, labels)[1] for labels in parts)
    return reduce(LabelTotals.__add__, (LabelTotals.of(labels, num_outputs, answers) for labels in items))
