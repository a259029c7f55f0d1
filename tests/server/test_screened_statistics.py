"""Feature statistics of other answers than one label: a client may send only what some rows could give."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from crossed_inputs import Inputs
from fftmoe.config import complete_recipe
from fftmoe.errors import FftmoeError
from fftmoe.records import Tensors, names
from fftmoe.server.lengths import update_length
from fftmoe.server.screening import Rejected, screen
from spoiling import of
from tampering import Recorded, record

TASKS = ("multi-label-classification", "regression", "token-classification")
SQUARES, MOMENT, GRAM = names.STATISTICS_SQUARES, names.STATISTICS_MOMENT, names.STATISTICS_GRAM


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recorded]:
    """The third round of feature statistics of each task, with 17 linear features and clients of about 14 rows."""
    inputs, found = Inputs.write(tmp_path_factory.mktemp("inputs")), {}
    for task in TASKS:
        recipe = inputs.recipe(task)
        recipe["partition"] = {"kind": "iid", "num_clients": 3}
        recipe["head"] = {"kind": "closed-form", "features": "linear"}
        whole, _ = complete_recipe(recipe, "tiny")
        found[task] = record(whole.model_dump(mode="json"), "sums")
    return found


@pytest.mark.parametrize("task", TASKS)
def test_statistics_of_honest_clients_pass(rounds: dict[str, Recorded], task: str):
    known = rounds[task]
    for client, message in known.replies.items():
        update = screen(message, known.expectation(client))
        assert (SQUARES in update.tensors) == (task != "token-classification")
        assert (names.STATISTICS_SCORES in update.tensors) == (task != "regression")


def _set(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].view(-1)[0].fill_(value)


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        ("multi-label-classification", _set(SQUARES, 3.0), "sums of squares of .*; expected the number of examples"),
        ("multi-label-classification", _set(SQUARES, -1.0), "sums of squares of .*; expected the number of examples"),
        ("multi-label-classification", lambda t: t[MOMENT][-1].add_(0.5), "expected whole numbers"),
        ("multi-label-classification", lambda t: t[MOMENT][0].fill_(1e6), "Cauchy-Schwarz"),
        ("regression", _set(SQUARES, -1.0), "Cauchy-Schwarz"),
        ("regression", lambda t: t[SQUARES].zero_(), "Cauchy-Schwarz"),
        ("regression", lambda t: t[MOMENT].mul_(1e6), "Cauchy-Schwarz"),
        ("regression", lambda t: t[SQUARES].fill_(float("nan")), "expected numbers from"),
        ("regression", lambda t: t.pop(SQUARES), "lacks the tensors"),
        ("token-classification", lambda t: t[GRAM][-1].mul_(100.0), "the number of tokens in its feature statistics"),
        ("token-classification", lambda t: t[GRAM][-1].zero_(), "the number of tokens in its feature statistics"),
        ("token-classification", lambda t: t[MOMENT][-1].add_(1.0), "do not add up"),
    ],
)
def test_what_no_rows_could_give_is_rejected(
    rounds: dict[str, Recorded], task: str, change: Callable[[Tensors], object], reason: str
):
    known = rounds[task]

    def spoil(header: dict[str, Any], tensors: Tensors) -> None:
        change(tensors)

    message = of(spoil)(known.replies[known.victim])
    assert message is not None
    expected = known.expectation(known.victim)
    with pytest.raises(Rejected, match=reason):
        screen(message, expected)


def test_numbers_of_any_size_show_in_the_length_that_clients_are_compared_by(rounds: dict[str, Recorded]):
    """Features of the usual length with numbers a thousand times as large would pull the head as far."""
    known = rounds["regression"]
    honest = screen(known.replies[known.victim], known.expectation(known.victim))
    larger = {name: tensor.clone() for name, tensor in honest.tensors.items()}
    larger[SQUARES] *= 1e6
    larger[MOMENT] *= 1e3
    lengths = [update_length(replace(honest, tensors=tensors), "sums") for tensors in (honest.tensors, larger)]
    assert lengths[1] > 100 * lengths[0]


@pytest.mark.parametrize("task", TASKS)
def test_any_number_in_any_place_gives_a_head_or_a_rejection(rounds: dict[str, Recorded], task: str):
    known = rounds[task]
    expected = known.expectation(known.victim)
    outcomes = set()
    for place, value in enumerate((0.0, -1.0, 1.0, 7.5, 1e9, -1e30, float("inf"), float("nan")) * 13):

        def spoil(header: dict[str, Any], tensors: Tensors, place: int = place, value: float = value) -> None:
            flat = tensors[sorted(tensors)[place % len(tensors)]].view(-1)
            flat[place * 31 % len(flat)] = value

        message = of(spoil)(known.replies[known.victim])
        assert message is not None
        try:
            screen(message, expected)
        except FftmoeError:
            outcomes.add("rejected")
        else:
            state, ledger = known.play({known.victim: message})
            assert not ledger.faults
            assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
            outcomes.add("accepted")
    assert outcomes == {"rejected", "accepted"}
