"""A step in parts is the same step, for every task and method, and blocks that are computed again change nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fftmoe.client.micro_batches import accumulated_gradients
from fftmoe.client.training import Losses, plain_gradients
from fftmoe.config import parse_recipe
from fftmoe.data import IGNORED
from fftmoe.errors import InputError
from fftmoe.head import make_head
from fftmoe.setup.compose import compose
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.store import RunFolder
from fftmoe.tasks import LOSSES, Loss
from run_fixtures import RunLanguage


def parts(name: str) -> tuple[Loss, Tensor, Tensor]:
    """A loss with outputs and labels of 11 examples."""
    random = torch.Generator().manual_seed(7)
    loss = LOSSES[name]() if name in LOSSES else make_head(name)
    if name == "causal-lm":
        labels = torch.randint(0, 5, (11, 7), generator=random)
        labels[torch.rand(11, 7, generator=random) < 0.5] = IGNORED
        labels[3] = IGNORED
        outputs = torch.rand(11, 7, generator=random) * (labels != IGNORED)
        outputs[:, 0] = 0.0
        return loss, outputs, labels
    if name == "token-classification":
        labels = torch.randint(0, 3, (11, 7), generator=random)
        labels[torch.rand(11, 7, generator=random) < 0.5] = IGNORED
        return loss, torch.randn(11, 7, 3, generator=random), labels
    if name == "preference":
        return loss, torch.randn(11, 2, 3, generator=random).abs(), torch.zeros(11, dtype=torch.int64)
    if name in ("regression", "multi-label-classification"):
        return loss, torch.randn(11, 3, generator=random), torch.randint(0, 2, (11, 3), generator=random).double()
    return loss, torch.randn(11, 3, generator=random), torch.randint(0, 3, (11,), generator=random)


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("name", [*sorted(LOSSES), "averaged", "one-vs-all", "closed-form"])
def test_the_gradients_of_parts_add_up_to_those_of_the_step(name: str, most: int):
    loss, outputs, labels = parts(name)
    found = []
    for make in (plain_gradients, accumulated_gradients(most, lambda rows: loss.items(labels[rows]))):
        weight = nn.Parameter(torch.ones((), dtype=torch.float64))

        def loss_of(rows: Tensor, weight: nn.Parameter = weight) -> Losses:
            task = loss.loss(outputs[rows].double() * weight, labels[rows])
            return Losses(task + 3.0 * weight, task)

        task = make(loss_of, torch.arange(11), [weight], lambda weight=weight: 2.0 * weight.square())
        assert task is not None
        assert weight.grad is not None
        found.append(torch.stack([task.double(), weight.grad]))
    # Eleven numbers of float64 are added in another order; their sum is not near zero.
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0.0)


def adapters(run_language: RunLanguage, **changes: Any) -> dict[str, Tensor]:
    return RunFolder(run_language(**changes).folder).load_newest().state.tensors  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["fft-moe", "fedit"])
def test_a_run_in_parts_ends_nearly_the_same(run_language: RunLanguage, method: str):
    quiet = {"method": method, "adapter__balance": "none", "adapter__z_strength": 0.0}
    whole, in_parts, one_part = (
        adapters(run_language, **quiet, **changes)
        for changes in (
            {"engine__clients_per_batch": 1},
            {"engine__micro_batch_size": 2},
            {"engine__micro_batch_size": 5},
        )
    )
    for name, tensor in whole.items():
        assert torch.equal(tensor, one_part[name])
        # AdamW divides by the size of the gradient: rounding of a tiny one can turn a whole step of 0.01 around.
        assert float((tensor - in_parts[name]).abs().median()) < 1e-5


def test_blocks_that_are_computed_again_change_no_bit(run_language: RunLanguage):
    changes: dict[str, Any] = {"adapter__shared_rank": 2, "adapter__balance": "heterogeneity-aware"}
    whole, again = (adapters(run_language, **changes, engine__checkpointing=on) for on in (False, True))
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_clients_do_not_share_a_batch_that_is_computed_in_parts(recipe_values: dict[str, Any]):
    engine = {**recipe_values.get("engine", {}), "micro_batch_size": 2}
    assert clients_per_batch(compose(parse_recipe({**recipe_values, "engine": engine}, "test"))) == 1
    stated = parse_recipe({**recipe_values, "engine": {**engine, "clients_per_batch": 3}}, "test")
    with pytest.raises(InputError, match="micro_batch_size"):
        clients_per_batch(compose(stated))
