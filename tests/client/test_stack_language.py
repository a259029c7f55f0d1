"""Several clients of a language model in one batch: each has the loss of its own tokens."""

import json
from typing import Any

import pytest
import torch

from fftmoe.errors import InputError
from fftmoe.head import make_head
from fftmoe.store import RunFolder
from fftmoe.tasks import LOSSES, LossByExample, NextToken
from run_fixtures import RunLanguage

CHANGES: dict[str, Any] = {"adapter__shared_rank": 2, "adapter__shared_targets": "all-linear", "federation__rounds": 1}


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_clients_in_one_batch_are_the_same_run(run_language: RunLanguage, cache: str):
    one, several = (
        run_language(**CHANGES, engine__prefix_cache=cache, engine__clients_per_batch=together) for together in (1, 3)
    )
    rows = [json.loads((finished.folder / "metrics.jsonl").read_text().splitlines()[1]) for finished in (one, several)]
    # Sums of a few hundred products in another order; the other clients' runs allow the same.
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=1e-4)
    states = [RunFolder(finished.folder).load_newest().state for finished in (one, several)]
    assert states[0] is not None
    assert states[1] is not None
    for name, tensor in states[0].tensors.items():
        # AdamW divides by the size of the gradient: rounding of a tiny one can turn a whole step around.
        assert float((tensor - states[1].tensors[name]).abs().median()) < 1e-5, name


def test_auto_leaves_large_batches_of_clients_alone(run_language: RunLanguage):
    auto, one = (run_language(**CHANGES, engine__clients_per_batch=number) for number in ("auto", 1))
    assert auto.summary["perplexity"] == pytest.approx(one.summary["perplexity"], rel=1e-4)


def test_lora_of_several_clients_is_refused(run_language: RunLanguage):
    with pytest.raises(InputError, match="trains one client at a time"):
        run_language(method="fedit", engine__clients_per_batch=3)


def test_a_mean_over_parts_is_the_loss_of_the_parts():
    random = torch.Generator().manual_seed(5)
    labels = torch.randint(-1, 3, (7, 5), generator=random)
    labels[labels < 0] = -100
    losses = torch.rand(7, 5, generator=random) * (labels != -100)
    losses[:, 0] = 0.0
    sums, items = NextToken().by_example(losses, labels)
    for rows in (slice(0, 3), slice(3, 7)):
        expected = NextToken().loss(losses[rows], labels[rows])
        torch.testing.assert_close(sums[rows].sum() / items[rows].sum(), expected)
        assert int(items[rows].sum()) == NextToken().items(labels[rows])


def test_which_losses_can_be_taken_over_a_part_of_a_batch():
    assert {name for name, make in LOSSES.items() if isinstance(make(), LossByExample)} == {"causal-lm"}
    assert all(isinstance(make_head(kind), LossByExample) for kind in ("averaged", "one-vs-all", "closed-form"))
