"""How sure a share of counted items is: the standard error and the interval, and how often the latter is right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_not_finite import JUDGED

from fftmoe.evaluate import RESAMPLES, Tally, own_shares
from fftmoe.rng import generator, numpy_generator
from fftmoe.tasks import NO_BOUND, TASKS, CountedShare, MultiLabel, Task, TokenClassification, worth
from fftmoe.tasks.f1 import f1_of_overlap

REPEATS = 300
# Of 10,000 draws at least 93 % of the intervals hold the true value; of these, four standard deviations fewer.
LEAST = 0.93 - 4 * math.sqrt(0.93 * 0.07 / REPEATS)


def _share(right: float, items: float) -> CountedShare:
    return CountedShare(np.asarray(right / items if items else np.nan), np.asarray(items))


@pytest.mark.parametrize("name", sorted(JUDGED))
def test_the_metric_follows_from_the_share(name: str):
    task, shape, labels, _ = JUDGED[name]
    source = generator(3, "shares", name)
    outputs, batch = torch.randn(shape, generator=source), {"labels": labels(source)}
    rows = task.statistics(outputs.squeeze(-1) if task.next_token else outputs, batch).numpy()
    for sums in (rows.sum(0), *rows):
        share = task.share(sums)
        if share is not None and share.items > 0:
            value = task.metrics(sums)[task.metric]
            assert share.metric(float(share.value)) == pytest.approx(value, rel=1e-12)  # some ten roundings
            assert share.value * share.items == pytest.approx(round(float(share.value * share.items)))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_what_is_no_share_has_no_bound(name: str):
    task = TASKS[name]()
    share = task.share(np.ones(len(task.limits(2, 1, 1)[0])))
    assert (share is None) == (task.bounds[1] >= NO_BOUND)


@given(st.integers(1, 400).flatmap(lambda items: st.tuples(st.integers(0, items), st.just(items))))
def test_no_share_is_without_error(counted: tuple[int, int]):
    right, items = counted
    error = _share(right, items).standard_error(items)
    added = (right + 1) / (items + 2)
    assert error == pytest.approx(math.sqrt(added * (1 - added) / (items + 2)))
    assert error >= 1 / (items + 2) / 2
    assert error == pytest.approx(_share(items - right, items).standard_error(items))
    if 0 < right < items:
        # The two items that are added move it by less than 1 / n, beside an error of about 1 / sqrt(n).
        assert error == pytest.approx(math.sqrt(right / items * (1 - right / items) / items), abs=1 / items)


@given(st.integers(0, 400), st.integers(0, 400), st.floats(1, 500))
def test_rows_bound_what_items_say(right: int, wrong: int, rows: float):
    """Whatever the metric is: no more items count than there are rows, and rows without items count for nothing."""
    share = _share(right, right + wrong)
    for of in (share, CountedShare(share.value, share.items, f1_of_overlap)):
        low, high = of.interval(rows)
        assert 0 <= low < high <= 1
        assert low <= of.metric(float(share.value)) <= high or not right + wrong
        assert of.interval(rows) == of.interval(min(rows, right + wrong))
        assert 0 < of.standard_error(rows) == of.standard_error(min(rows, right + wrong)) < 0.5
    assert _share(0, 0).interval(rows) == (0.0, 1.0)


def test_the_error_of_f1_is_that_of_its_samples():
    """Of 400 labels that are actual or predicted 240 are hits: the error is that of 20,000 draws of so many.

    The draws' own is off by 1 / sqrt(40,000), and what is left of the curve of F1 and of the two that are added by
    less than 1 / 400.
    """
    draws = numpy_generator(0, "f1").binomial(400, 0.6, 20_000) / 400
    sums = np.array([240.0, 320.0, 320.0, 0.0, 10_000.0])
    share = MultiLabel().share(sums)
    assert share.standard_error(10_000) == pytest.approx(float(np.std(2 * draws / (1 + draws))), rel=0.02)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(1, 5))
def test_rows_of_equal_size_are_worth_their_number_and_others_less(sizes: list[int], times: int):
    items = np.array(sizes, dtype=float)
    found, judged = worth(items), int((items > 0).sum())
    assert found <= judged * (1 + 1e-12)
    assert found == pytest.approx(worth(times * items))
    if len({*sizes} - {0}) == 1:
        assert found == pytest.approx(judged)
    assert worth(np.zeros(3)) == 0


def _labels(prevalence: float, f1: float, together: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """A task, the statistics of its kinds of rows [4, K], and how often each kind occurs [4]: rows have all labels of
    `together` or none, recall and precision are equal, and so F1 is the same."""
    kinds = np.array([[1, 1, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=float)
    ends = np.array([[1, 1], [0, 1], [0, 1], [1, 1]], dtype=float)
    wrong = prevalence * (1 - f1)
    shares = np.array([prevalence * f1, wrong, wrong, 1 - prevalence - wrong])
    return MultiLabel(), np.concatenate([kinds.repeat(together, axis=1), ends], 1), shares


def _tags(accuracy: float, short: int, long: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """Rows of `short` or `long` tags of the first class, that are all right or all wrong."""
    kinds = np.array([[r * n, 0, r * n, (1 - r) * n, n, 0] for n in (short, long) for r in (1, 0)], dtype=float)
    return TokenClassification(), kinds, np.array([accuracy, 1 - accuracy] * 2) / 2


def _coverage(task: Task, kinds: np.ndarray, shares: np.ndarray, rows: int) -> tuple[float, float]:
    """How often the interval holds the true value in `REPEATS` draws of so many rows, and by what it is wider in the
    mean than the middle 95 % of the values of these draws.

    The number of Poisson(1) draws that take rows of one kind is Poisson with their number as its mean.
    """
    draws = numpy_generator(0, f"coverage of {rows}")
    truth, each = task.metrics(shares @ kinds)[task.metric], own_shares(task, kinds)
    values, ends = np.zeros(REPEATS), np.zeros((REPEATS, 2))
    for i in range(REPEATS):
        numbers = draws.multinomial(rows, shares)
        resampled = draws.poisson(numbers, (RESAMPLES, len(kinds))) @ kinds
        found = Tally(task, numbers @ kinds[None], np.array([rows]), resampled, each=each.repeat(numbers, 0))
        values[i], ends[i] = found.metrics()[task.metric], found.interval()
    low, high = np.percentile(values, [2.5, 97.5])
    held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return float(held.mean()), float(np.diff(ends).mean() / (high - low))


@pytest.mark.parametrize("rows", [100, 1000])
@pytest.mark.parametrize(
    ("prevalence", "f1", "together"),
    [*((share, f1, 1) for share in (0.01, 0.05, 0.3) for f1 in (0.7, 0.95)), (0.05, 0.7, 5), (0.3, 0.95, 5)],
)
def test_the_interval_of_f1_holds_the_true_value(prevalence: float, f1: float, together: int, rows: int):
    """In 10,000 draws of 100 and of 1,000 rows the intervals held it so often; in brackets, where F1 counted as a share
    of all rows, and rows with another F1 than the commonest decided about the bootstrap:

        1 %: F1 .70 .997 (.129), .951 (.228); F1 .95 .963 (.000), .949 (.247)
        5 %: F1 .70 .963 (.367), .947 (.941); F1 .95 .946 (.163), .968 (.468)
        30 %: F1 .70 .945 (.937), .946 (.943); F1 .95 .960 (.865), .944 (.942)

    They are at most 1.3 times as wide as the values of the draws are apart, and those of tags 1.9 times, where a third
    of the draws have no wrong row.
    """
    task, kinds, shares = _labels(prevalence, f1, together)
    assert task.metrics(shares @ kinds)["f1"] == pytest.approx(f1)
    held, wider = _coverage(task, kinds, shares, rows)
    assert held >= LEAST
    assert wider <= 2


@pytest.mark.parametrize("rows", [100, 1000])
@pytest.mark.parametrize("accuracy", [0.9, 0.99])
def test_that_of_tags_holds_it_where_rows_are_of_unlike_length(accuracy: float, rows: int):
    held, wider = _coverage(*_tags(accuracy, 2, 20), rows)
    assert held >= LEAST
    assert wider <= 2
