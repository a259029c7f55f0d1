"""Says how often each label occurs among the rows that a client trains on, where that may be known."""

from collections.abc import Sequence
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.config import Recipe
from fftmoe.data import Examples, Partition, Ragged, WithPrefix
from fftmoe.evaluate import Observe, tally
from fftmoe.head import LabelAnswers, LabelTotals
from fftmoe.records import ServerState
from fftmoe.rounds.own_answers import ChoosingRows, OwnLabels
from fftmoe.tasks import Task, label_form

MOST_CHOOSING = 256  # rows by which a client chooses that has set none aside
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

    def choosing(client: int) -> ChoosingRows:
        set_aside = held_out[client]
        if len(set_aside):
            return ChoosingRows(set_aside, counted=False)
        return ChoosingRows(partition.indices[client][:MOST_CHOOSING], counted=True)

    def totals(client: int) -> LabelTotals:
        return count(partition.indices[client])

    @cache  # of tags it reads all rows, and every tier and every client's own model asks for it
    def everyones() -> tuple[float, ...]:
        return tuple(count(partition.indices.flat).shares(answers).tolist())

    solved = recipe.closed_form is not None  # its sums say everyone's shares, also where clients are elsewhere
    return OwnLabels(answers, totals, train, choosing, solved, None if solved else everyones)


def chosen_shares(own: OwnLabels, client: int, model: Any, task: Task, label_shares: Sequence[float]) -> Tensor:
    """Return the label shares for which a client corrects the answers of the model as it is now, float64 [C].

    Args:
        own: of a model whose outputs are logits. label_shares: everyone's.
    """

    def show(rows: Examples, observe: Observe) -> None:
        tally(model, task, rows, 1 + int(rows.labels.max()), observe=observe)

    found = own.chosen(ServerState(0, {}, label_shares=tuple(label_shares)), [client], show)
    assert found is not None, "everyone's shares are known"
    everyones = own.answers.logits_of(torch.tensor(label_shares, dtype=torch.float64))
    return own.answers.probabilities(everyones + found.strengths[0] * found.shifts[0].double())


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
