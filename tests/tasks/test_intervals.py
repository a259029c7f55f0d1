"""The interval of a metric: of the bootstrap, and Wilson's where few rows differ from the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.backbones import load_backbone
from fftmoe.evaluate import FEW, RESAMPLES, Tally, own_shares, tally
from fftmoe.rng import numpy_generator
from fftmoe.tasks import CausalLm, Classification, MultiLabel
from fftmoe.tasks.share import WILSON_Z
from models import token_examples


def _bootstrap(task: Any, rows_NK: np.ndarray, seed: int) -> Tally:
    """The tally of rows of statistics, resampled with replacement: the definition of the bootstrap."""
    draws = numpy_generator(seed, "definition")
    picked = draws.integers(0, len(rows_NK), (RESAMPLES, len(rows_NK)))
    sums, counts = rows_NK.sum(0)[None], np.array([len(rows_NK)])
    return Tally(task, sums, counts, rows_NK[picked].sum(1), each=own_shares(task, rows_NK))


def _rows(right: int, num_rows: int) -> np.ndarray:
    """The statistics of a classification with this many right rows."""
    return np.stack([np.arange(num_rows) < right, np.ones(num_rows)], 1).astype(float)


def test_it_is_that_of_samples_with_replacement(backbone_folder: Path):
    """The Poisson bootstrap is an approximation, and both are random: their ends agree within a third of the width."""
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(211, seed=2)
    task = Classification()
    found = tally(model, task, examples, 3, interval=True)
    right = int(found.sums[:, 0].sum())
    rows = _rows(right, 211)
    low, high = found.interval()
    assert low < found.metrics()["accuracy"] < high
    expected = _bootstrap(task, rows, seed=5).interval()
    np.testing.assert_allclose((low, high), expected, atol=(high - low) / 3)
    assert tally(model, task, examples, 3, interval=True).interval() == (low, high)


@settings(deadline=None, max_examples=60)
@given(num_rows=st.integers(1, 300), data=st.data())
def test_few_rows_that_differ_give_wilsons_interval(num_rows: int, data: st.DataObject):
    """Brute force: its ends are the shares whose own score test at 95 % the counted share just passes."""
    few = data.draw(st.integers(0, min(FEW - 1, num_rows // 2)))
    right = data.draw(st.sampled_from([few, num_rows - few]))
    low, high = _bootstrap(Classification(), _rows(right, num_rows), seed=1).interval()
    shares = np.linspace(0, 1, 20001)[1:-1]
    passed = shares[(right / num_rows - shares) ** 2 <= WILSON_Z**2 * shares * (1 - shares) / num_rows]
    np.testing.assert_allclose(
        (low, high), (min(passed[0], right / num_rows), max(passed[-1], right / num_rows)), atol=1e-4
    )
    assert 0 <= low <= right / num_rows <= high <= 1
    assert high - low > 0


@pytest.mark.parametrize("num_rows", [1, 12, 100])
def test_where_all_rows_agree_it_is_no_point(num_rows: int):
    low, high = _bootstrap(Classification(), _rows(num_rows, num_rows), seed=1).interval()
    assert (low, high) == (pytest.approx(num_rows / (num_rows + WILSON_Z**2)), 1.0)
    assert _bootstrap(Classification(), _rows(0, num_rows), seed=1).interval() == pytest.approx((0.0, 1 - low))
    labels = np.array([[1.0, 1.0, 1.0, 1.0, 1.0]] * num_rows + [[0.0, 0.0, 0.0, 1.0, 1.0]] * 50)
    carried = 2 * low / (1 + low)
    assert _bootstrap(MultiLabel(), labels, seed=1).interval() == (pytest.approx(carried), 1.0)


def test_texts_without_labels_say_nothing_of_f1():
    """None has a label and none is given one: F1 is 1 by its definition, and may be anything for the next text."""
    found = _bootstrap(MultiLabel(), np.array([[0.0, 0.0, 0.0, 1.0, 1.0]] * 100), seed=1)
    assert (found.metrics()["f1"], found.interval()) == (1.0, (0.0, 1.0))


def test_the_bootstrap_stays_where_enough_rows_differ():
    found = _bootstrap(Classification(), _rows(FEW, 3 * FEW), seed=1)
    assert found.resampled is not None
    assert found.interval() == tuple(np.percentile(found.resampled[:, 0] / found.resampled[:, 1], [2.5, 97.5]))


def test_without_bounds_rows_that_agree_leave_it_unknown():
    """One text has one perplexity, and says nothing of how far others are from it."""
    one = np.array([[6.0, 3.0]])
    assert np.isnan(_bootstrap(CausalLm(), one, seed=1).interval()).all()
    assert np.isfinite(_bootstrap(CausalLm(), np.array([[6.0, 3.0], [7.0, 3.0]]), seed=1).interval()).all()


def test_it_is_unknown_where_there_is_nothing():
    empty = Tally(MultiLabel(), np.zeros((1, 5)), np.zeros(1), np.zeros((RESAMPLES, 5)), each=np.zeros((0, 2)))
    assert np.isnan(empty.interval()).all()


def test_each_row_is_kept_in_every_batch(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(150, seed=2)
    found = tally(model, Classification(), examples, 3, interval=True)
    right = int(found.sums[:, 0].sum())
    assert found.each is not None
    assert found.each.sum(0).tolist() == [right, 150]


def test_a_tally_without_resamples_has_no_interval(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(7, seed=2)
    with pytest.raises(AssertionError, match="asked for"):
        tally(model, Classification(), examples, 3).interval()


def test_asking_for_it_changes_no_metric(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(67, seed=2)
    plain, resampled = (tally(model, Classification(), examples, 3, interval=wanted) for wanted in (False, True))
    assert np.array_equal(plain.sums, resampled.sums)
    assert torch.equal(torch.from_numpy(plain.counts), torch.from_numpy(resampled.counts))
