"""Metrics worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fftmoe.backbones import load_backbone, logits
from fftmoe.evaluate import Tally, accuracy, client_metrics, mean_and_worst_decile, predict_logits, tally
from fftmoe.tasks import Classification
from fftmoe.tasks.share import wilson
from models import token_examples


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_logits_come_in_the_order_of_the_examples_whatever_the_batches(backbone_folder: Path, batch_size: int):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    with torch.inference_mode():
        one_by_one = torch.cat([logits(model, examples.batch([i])) for i in range(23)])
    result = predict_logits(model, examples, batch_size)
    assert result.shape == (23, 3)
    # Padding and batching change the order of float32 sums.
    torch.testing.assert_close(result, one_by_one)
    predicted = one_by_one.argmax(1)
    assert accuracy(model, examples) == float((predicted == examples.labels).double().mean())


def test_accuracy_is_counted_within_each_class(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    found = tally(model, Classification(), examples, 4)
    assert found.metrics() == {"accuracy": accuracy(model, examples)}
    predicted = predict_logits(model, examples).argmax(1)
    by_class = [float((predicted == c)[examples.labels == c].double().mean()) for c in range(3)]
    np.testing.assert_array_equal(found.by_stratum(), [*by_class, np.nan])
    np.testing.assert_array_equal(found.counts, [8, 8, 7, 0])


def test_a_clients_accuracy_weighs_classes_by_its_labels():
    """Of the classes 2 of 4 and 3 of 3 are right, and of the last there is nothing."""
    found = Tally(Classification(), np.array([[2.0, 4.0], [3.0, 3.0], [0.0, 0.0]]), np.array([4, 3, 0]))
    assert found.metrics() == {"accuracy": 5 / 7}
    shares = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    # The class without held-out examples is left out; a client with no other has no accuracy.
    np.testing.assert_allclose(found.on_mixes(shares), [0.5, 0.875, 0.75, np.nan])


def test_a_client_measures_itself_on_everything_and_on_its_own_labels(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    model.get_parameter("classifier.bias").data = torch.tensor([9.0, 0.0, 0.0])  # it always says 0
    share, task = float((examples.labels == 0).double().mean()), Classification()
    mixed = client_metrics(model, torch.tensor([0, 0, 0, 1]), task, examples)
    assert (mixed["holdout_accuracy"], mixed["own_accuracy"]) == (pytest.approx(share), 0.75)
    assert mixed["low_accuracy"] <= share <= mixed["high_accuracy"]
    own = examples.select([0, 1, 2, 3, 4])
    expected = float((own.labels == 0).double().mean())
    assert client_metrics(model, torch.tensor([0]), task, examples, own)["own_accuracy"] == pytest.approx(expected)
    assert "own_accuracy" not in client_metrics(model, torch.tensor([0]), task, examples, examples.select([]))
    assert client_metrics(model, torch.tensor([2]), task, examples)["own_accuracy"] == 0.0
    only_zeros = examples.select(torch.nonzero(examples.labels == 0).flatten().numpy())
    assert client_metrics(model, torch.tensor([1]), task, only_zeros) == {
        "holdout_accuracy": 1.0,
        "low_accuracy": wilson(1.0, len(only_zeros))[0],
        "high_accuracy": 1.0,
    }


@pytest.mark.parametrize(
    ("values", "mean", "worst"),
    [
        ([0.5], 0.5, 0.5),
        ([0.9, 0.1, 0.5], 0.5, 0.1),
        ([*np.linspace(0.1, 1.0, 10)], 0.55, 0.1),
        ([*np.linspace(0.0, 1.9, 20)], 0.95, 0.05),  # two of twenty: 0.0 and 0.1
        ([0.4, np.nan, 0.6], 0.5, 0.4),
    ],
)
def test_the_worst_decile_is_at_least_one_client(values: list[float], mean: float, worst: float):
    result = mean_and_worst_decile(values)
    assert result == pytest.approx({"mean": mean, "worst_decile": worst})
    errors = mean_and_worst_decile([-value for value in values], higher_is_better=False)
    assert errors == pytest.approx({"mean": -mean, "worst_decile": -worst})
