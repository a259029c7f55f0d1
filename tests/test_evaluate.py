"""Metrics worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fftmoe.backbones import load_backbone
from fftmoe.evaluate import (
    accuracy,
    accuracy_by_class,
    client_accuracies,
    client_metrics,
    mean_and_worst_decile,
    predict_logits,
)
from models import token_examples


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_logits_come_in_the_order_of_the_examples_whatever_the_batches(backbone_folder: Path, batch_size: int):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    with torch.inference_mode():
        one_by_one = torch.cat([model(**examples.batch([i])) for i in range(23)])
    result = predict_logits(model, examples, batch_size)
    assert result.shape == (23, 3)
    # Padding and batching change the order of float32 sums.
    torch.testing.assert_close(result, one_by_one)
    predicted = one_by_one.argmax(1)
    assert accuracy(model, examples) == float((predicted == examples.labels).double().mean())


def test_accuracy_by_class_counts_within_each_class():
    predicted, labels = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0])
    result = accuracy_by_class(predicted, labels, 4)
    np.testing.assert_array_equal(result, [0.5, 0.5, 1.0, np.nan])


def test_a_clients_accuracy_weighs_classes_by_its_labels():
    by_class = np.array([0.5, 1.0, np.nan])
    shares = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    # The class without held-out examples is left out; a client with no other has no accuracy.
    np.testing.assert_allclose(client_accuracies(by_class, shares), [0.5, 0.875, 0.75, np.nan])


def test_a_client_measures_itself_on_everything_and_on_its_own_labels(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(23, seed=2)
    model.get_parameter("classifier.bias").data = torch.tensor([9.0, 0.0, 0.0])  # it always says 0
    share = float((examples.labels == 0).double().mean())
    mixed = client_metrics(model, torch.tensor([0, 0, 0, 1]), examples, 3)
    assert mixed == {"holdout_accuracy": pytest.approx(share), "own_accuracy": 0.75}
    assert client_metrics(model, torch.tensor([2]), examples, 3)["own_accuracy"] == 0.0
    only_zeros = examples.select(torch.nonzero(examples.labels == 0).flatten().numpy())
    assert client_metrics(model, torch.tensor([1]), only_zeros, 3) == {"holdout_accuracy": 1.0}


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
