"""The bootstrap interval of a metric."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.backbones import load_backbone
from fftmoe.evaluate import RESAMPLES, Tally, tally
from fftmoe.rng import numpy_generator
from fftmoe.tasks import Classification, MultiLabel
from models import token_examples


def _bootstrap(task: Any, rows_NK: np.ndarray, seed: int) -> Tally:
    """The tally of rows of statistics, resampled with replacement: the definition of the bootstrap."""
    draws = numpy_generator(seed, "definition")
    picked = draws.integers(0, len(rows_NK), (RESAMPLES, len(rows_NK)))
    return Tally(task, rows_NK.sum(0)[None], np.array([len(rows_NK)]), rows_NK[picked].sum(1))


def test_it_is_that_of_samples_with_replacement(backbone_folder: Path):
    """The Poisson bootstrap is an approximation, and both are random: their ends agree within a third of the width."""
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(211, seed=2)
    task = Classification()
    found = tally(model, task, examples, 3, interval=True)
    right = int(found.sums[:, 0].sum())
    rows = np.stack([np.arange(211) < right, np.ones(211)], 1).astype(float)
    low, high = found.interval()
    assert low < found.metrics()["accuracy"] < high
    expected = _bootstrap(task, rows, seed=5).interval()
    np.testing.assert_allclose((low, high), expected, atol=(high - low) / 3)
    assert tally(model, task, examples, 3, interval=True).interval() == (low, high)


def test_it_is_a_point_where_all_rows_agree_and_unknown_where_there_is_nothing():
    task, rows = MultiLabel(), np.array([[1.0, 1.0, 1.0, 1.0, 1.0]] * 13)
    assert _bootstrap(task, rows, seed=1).interval() == (1.0, 1.0)
    empty = Tally(task, np.zeros((1, 5)), np.zeros(1), np.zeros((RESAMPLES, 5)))
    assert np.isnan(empty.interval()).all()


def test_a_tally_without_resamples_has_no_interval(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(7, seed=2)
    with pytest.raises(AssertionError, match="asked for"):
        tally(model, Classification(), examples, 3).interval()


def test_asking_for_it_changes_no_metric(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(67, seed=2)
    plain, resampled = (tally(model, Classification(), examples, 3, interval=wanted) for wanted in (False, True))
    assert np.array_equal(plain.sums, resampled.sums)
    assert torch.equal(torch.from_numpy(plain.counts), torch.from_numpy(resampled.counts))
