"""How often each label was right, given and predicted: by hand, in batches, and in the summary of a run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fftmoe.backbones import load_backbone
from fftmoe.evaluate import predict_logits, tally
from fftmoe.tasks import CausalLm, Classification, LabelCounts, MultiLabel, Regression, TokenClassification
from fftmoe.tasks.label_counts import MOST_CONFUSED
from finished import Finished
from models import token_examples


def scores(predicted: list[int], num_labels: int) -> torch.Tensor:
    """Logits whose highest are those of `predicted`."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_labels).float()


def counted(*args: object) -> dict[str, list]:
    found = LabelCounts.of(*args)  # type: ignore[arg-type]
    assert found is not None
    return found.values()


def test_a_classifier_worked_by_hand():
    """The labels 0 0 0 2 1 are predicted as 0 1 0 2 2; there is no label 3."""
    found = counted(Classification(), scores([0, 1, 0, 2, 2], 4), {"labels": torch.tensor([0, 0, 0, 2, 1])})
    assert found == {
        "actual": [3, 1, 1, 0],
        "predicted": [2, 1, 2, 0],
        "hits": [2, 0, 1, 0],
        "confusion": [[2, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
    }


def test_only_labelled_tokens_count():
    said, labels = torch.tensor([[0, 1, 1], [0, 2, 2]]), torch.tensor([[0, 1, 0], [2, -100, -100]])
    found = counted(TokenClassification(), torch.nn.functional.one_hot(said, 3).float(), {"labels": labels})
    assert found == {
        "actual": [2, 1, 1],
        "predicted": [2, 2, 0],
        "hits": [1, 1, 0],
        "confusion": [[1, 1, 0], [0, 1, 0], [1, 0, 0]],
    }


def test_each_of_several_labels_counts_and_none_is_taken_for_another():
    outputs = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, 0.5], [-3.0, -0.1, -0.2]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = counted(MultiLabel(), outputs, {"labels": targets})
    assert found == {"actual": [1, 1, 1], "predicted": [1, 1, 1], "hits": [1, 0, 1]}


@pytest.mark.parametrize("task", [Regression(), CausalLm()])
def test_tasks_without_labels_count_nothing(task: Regression | CausalLm):
    assert LabelCounts.of(task, torch.zeros(3, 2, 5), {"labels": torch.zeros(3, 2)}) is None


@pytest.mark.parametrize(("num_labels", "has_matrix"), [(MOST_CONFUSED, True), (MOST_CONFUSED + 1, False)])
def test_a_matrix_is_of_few_labels(num_labels: int, has_matrix: bool):
    found = counted(Classification(), scores([1, 2], num_labels), {"labels": torch.tensor([1, 0])})
    assert ("confusion" in found) == has_matrix
    assert sum(found["hits"]) == 1


def test_batches_add_up_to_the_counts_of_all_examples(backbone_folder: Path):
    model, examples = load_backbone(str(backbone_folder), num_labels=3), token_examples(151, seed=2)
    found = tally(model, Classification(), examples, 3, count_labels=True).labels
    assert found is not None
    assert found.confusion is not None
    predicted, matrix = predict_logits(model, examples).argmax(1), np.zeros((3, 3), dtype=np.int64)
    np.add.at(matrix, (examples.labels.numpy(), predicted.numpy()), 1)
    np.testing.assert_array_equal(found.confusion, matrix)
    np.testing.assert_array_equal(found.hits, matrix.diagonal())
    assert tally(model, Classification(), examples, 3).labels is None


def test_the_summary_has_the_counts_of_the_model_that_is_kept(tiny_run: Finished):
    counts, summary = tiny_run.summary["labels"], tiny_run.summary
    assert sum(counts["hits"]) / sum(counts["actual"]) == pytest.approx(summary["accuracy"], rel=1e-12)
    assert len(counts["name"]) == len(counts["confusion"]) == len(counts["predicted"])
