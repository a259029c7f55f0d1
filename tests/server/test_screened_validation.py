"""A client may lie about its validation rows only within what these rows can have, whatever the task."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.data import IGNORED
from fftmoe.records import Tensors, names
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup.expected import expectations
from fftmoe.tasks import TASKS
from fftmoe.tasks.base import Task
from spoiling import of
from tampering import CELLS, Recorded, recipe_of, record

ROWS, OUTPUTS, TOKENS = 7, 3, 5


@pytest.fixture(scope="module")
def known(recipe_values: dict[str, Any]) -> Recorded:
    return record(recipe_of("fft-moe-validate", recipe_values), CELLS["fft-moe-validate"][2], rounds=1)


def spoilt(change: Callable[[torch.Tensor], object]) -> Callable[[bytes], bytes | None]:
    def spoil(header: dict[str, Any], tensors: Tensors) -> None:
        change(tensors[names.VALIDATION])

    return of(spoil)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sums: sums[-1].add_(1), r"rows that it has validated is \d+; expected \d+, which it has set aside"),
        (lambda sums: sums.zero_(), "rows that it has validated is 0;"),
        (lambda sums: sums[0].copy_(sums[-1] + 1), r"its statistic 0 of \d+ rows is \d+; expected 0 to \d+"),
        (lambda sums: sums[0].fill_(-1), "its statistic 0 .* is -1; expected 0 to "),
        (lambda sums: sums[1].mul_(1e30), "its statistic 1 "),
        (lambda sums: sums[0].fill_(float("nan")), "expected numbers from"),
    ],
)
def test_statistics_that_these_rows_cannot_have_are_rejected(
    known: Recorded, change: Callable[[torch.Tensor], object], reason: str
):
    message = spoilt(change)(known.replies[known.victim])
    assert message is not None
    with pytest.raises(Rejected, match=reason):
        screen(message, known.expectation(known.victim))
    _, counted = known.play({known.victim: message})
    assert counted.faults == {"rejected": 1}


@pytest.mark.parametrize(("metric", "passes"), [(1.0, True), (float("nan"), True), (2.0, False), (-0.1, False)])
def test_statistics_of_which_each_can_be_must_also_give_a_metric_that_can_be(
    known: Recorded, metric: float, passes: bool
):
    """Of tokens, two may be right and one judged. A metric that is not a number is that of rows without labels."""
    expected = known.expectation(known.victim)
    assert expected.validated is not None
    judged = replace(expected, validated=replace(expected.validated, metric=lambda sums: metric))
    refused = pytest.raises(Rejected, match=f"give a metric of {metric:g}; expected a number from 0 to 1")
    with nullcontext() if passes else refused:
        screen(known.replies[known.victim], judged)


def test_a_site_must_validate_the_rows_that_follow_from_its_number_of_rows(known: Recorded):
    """The server has none of a site's rows, and still knows how many are set aside."""
    remote = replace(known.experiment, remote=True)
    (client,) = (plan for plan in known.plan.clients if plan.client_id == known.victim)
    expected = expectations(remote)(client, remote.method.download(known.state, client))
    screen(known.replies[known.victim], expected)
    message = spoilt(lambda sums: sums.add_(1))(known.replies[known.victim])
    assert message is not None
    with pytest.raises(Rejected, match="it has validated"):
        screen(message, expected)


def judged(task: str, seed: int) -> np.ndarray:
    """The summed statistics of random outputs, some of them far from right."""
    draws = torch.Generator().manual_seed(seed)
    shape = (ROWS, TOKENS, OUTPUTS) if TASKS[task]().by_token else (ROWS, OUTPUTS)
    outputs = 10 ** torch.randint(-1, 2, (1,), generator=draws) * torch.randn(shape, generator=draws)
    labels = {
        "multi-label-classification": torch.randint(2, shape, generator=draws).float(),
        "regression": 1e4 * torch.randn(shape, generator=draws),
    }.get(task, torch.randint(OUTPUTS, shape[:-1], generator=draws))
    if TASKS[task]().by_token:
        labels[torch.rand(labels.shape, generator=draws) < 0.3] = IGNORED
    if TASKS[task]().next_token:
        losses = torch.nn.functional.cross_entropy(outputs[:, :-1].mT, labels[:, 1:], reduction="none")
        outputs = torch.nn.functional.pad(losses, (1, 0))
    if task == "preference":  # the texts of as many pairs, and what the reference says of each
        tokens = (labels[:, 1:] != IGNORED).sum(1).float()
        scores = torch.stack([-outputs.sum(1), -outputs.sum(1) * torch.rand(ROWS, generator=draws), tokens], 1)
        outputs, labels = torch.stack([scores, scores.roll(1, 0)], 1), torch.cat([labels, labels.roll(1, 0)])
    return TASKS[task]().statistics(outputs, {"labels": labels}).sum(0).numpy()


@pytest.mark.parametrize("task", TASKS)
def test_what_a_model_answers_is_within_the_limits_of_its_task(task: str):
    made: Task = TASKS[task]()
    least, most = made.limits(OUTPUTS, ROWS, TOKENS)
    for seed in range(20):
        sums = judged(task, seed)
        assert sums.shape == least.shape == most.shape
        assert (least <= sums).all()
        assert (sums <= most).all()
        low, high = made.bounds
        assert low <= float(made.metrics(sums)[made.metric]) <= high


@pytest.mark.parametrize("task", TASKS)
def test_a_client_without_rows_has_sums_of_zero(task: str):
    least, most = TASKS[task]().limits(OUTPUTS, 0, TOKENS)
    assert not least.any()
    assert not most[np.abs(most) < 1e30].any()  # squares of regression have no other bound than that of their format
