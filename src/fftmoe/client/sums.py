"""Computes a client's part of a closed-form head: feature statistics, which are sums over the client's examples.

The sums hold less than the data, but they do not protect it. They say how many examples of each label the client has
and give the sum of their features. For a label with one example that sum is the features of that example. The sums of
a client with a single example are that example, with its label. `in_frequent_groups` chooses the examples of a
client that does not want this.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import head_inputs, head_parameters, on_device
from fftmoe.data import Examples, WithPrefix, evaluation_batches
from fftmoe.head import ONE_LABEL, Answers, HeadSums, LabelAnswers, are_few, few_tensors, score_sums
from fftmoe.head.temperature import LARGEST_SCORE
from fftmoe.records import Tensors, names

SUMS_BATCH_SIZE = 64
GROUPED_AT_ONCE = 1024  # examples whose labels are read together


def groups_of(examples: Examples, indices: np.ndarray, num_outputs: int, answers: Answers) -> np.ndarray:
    """Return which sums of feature statistics each of these examples is part of, bool [N, G] (`Answers.groups`)."""
    if answers.one_each and answers.exclusive:  # the class of each example is known without its inputs
        return answers.groups(examples.labels[torch.from_numpy(indices)], num_outputs).numpy()
    plain = examples.examples if isinstance(examples, WithPrefix) else examples  # no states are needed
    parts = [
        answers.groups(plain.batch(rows)["labels"], num_outputs)
        for rows in np.array_split(indices, 1 + len(indices) // GROUPED_AT_ONCE)
    ]
    return torch.cat(parts).numpy()


def in_frequent_groups(groups_NG: np.ndarray, fewest: float) -> np.ndarray:
    """Return which examples may be in sums, bool [N]: those left when all others are left out one after another,
    each of which is part of a group with fewer than `fewest` examples.

    An example that is left out makes the other groups that it is part of smaller.
    """
    kept_N = np.ones(len(groups_NG), dtype=bool)
    while True:
        sizes_G = groups_NG[kept_N].sum(0)
        rare_G = (sizes_G > 0) & (sizes_G < fewest)
        if not rare_G.any():
            return kept_N
        kept_N &= ~groups_NG[:, rare_G].any(1)


@torch.inference_mode()
def head_sums(
    model: Any,
    examples: Examples,
    indices: np.ndarray,
    num_outputs: int,
    reveal_number: bool = True,
    answers: Answers = ONE_LABEL,
) -> Tensors:
    """Return the sums over these examples of the features that the model's head reads, ready to be sent.

    Args:
        model: the backbone with the adapter.
        examples: the data of all clients.
        indices: the client's examples, int64 [N], at least one.
        num_outputs: of the head.
        reveal_number: whether the size of the answer may depend on N; False where N must stay unknown.
        answers: what the head is fitted to.
    """
    scores: list[Tensor] = []
    batches = _scored(model, _features_and_labels(model, examples, indices, answers), scores, answers)
    first = next(batches)
    if reveal_number and answers.one_each and are_few(len(indices), first[0].shape[1]):
        features, labels = map(torch.cat, zip(first, *batches, strict=True))
        sums = few_tensors(features, labels, num_outputs, answers)
    else:
        parts = (HeadSums.of(*batch, num_outputs, answers) for batch in chain([first], batches))
        sums = HeadSums.total(parts).to_tensors()
    if not scores:
        return sums
    total = torch.stack(scores).sum(0).clamp_max(LARGEST_SCORE)
    return {**sums, names.STATISTICS_SCORES: total.float()}


def _scored(
    model: Any, batches: Iterator[tuple[Tensor, Tensor]], scores: list[Tensor], answers: Answers
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; the scores of the head that the client was sent are added to `scores`, batch by batch,
    where its outputs have probabilities.
    """
    head = {name: p.detach().cpu() for name, p in head_parameters(model).items()}
    for features, labels in batches:
        if isinstance(answers, LabelAnswers):
            outputs = torch.addmm(head["bias"], features, head["weight"].T)
            scores.append(score_sums(outputs, labels, answers))
        yield features, labels


def _features_and_labels(
    model: Any, examples: Examples, indices: np.ndarray, answers: Answers
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features float32 [N, F] and labels of the items of each batch."""
    for batch in map(examples.batch, evaluation_batches(examples, SUMS_BATCH_SIZE, indices)):
        found = head_inputs(model, on_device(model, batch), of_tokens=not answers.one_each)
        yield answers.items(found.cpu(), batch["labels"])
