"""Closed-form heads in whole runs: when they are computed, what they cost, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.records import ServerState
from fftmoe.rounds import closed_form
from fftmoe.server import solve
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.run import run
from finished import Finished
from five_clients import AVERAGED, CLOSED, FOURIER, FROZEN, PERSONAL
from models import FAMILIES, tiny_tokenizer
from run_fixtures import FiveRecipe, RunFive


@pytest.mark.parametrize("partition", [{"kind": "iid"}, {"kind": "shards", "shards_per_client": 1}])
@pytest.mark.parametrize("method", ["fft-moe", "flora", "head-only"])
def test_before_training_every_method_and_partition_has_the_centralized_head(
    run_five: RunFive, method: str, partition: dict[str, Any], shrunk_head: None
):
    """An untrained adapter changes nothing, and the statistics do not depend on who holds which example."""
    weight, bias = run_five(method, FROZEN, partition={"num_clients": 5, **partition}, seed=11).head
    expected = run_five("centralized", FROZEN, seed=11).head
    # Features and statistics are in float32: some 100 additions, of one unit in the last place each. The condition
    # number of the Gram matrix of 21 features, shrunk by its mean eigenvalue, is at most (21 + 1) / 1.
    bound = 22 * 100 * torch.finfo(torch.float32).eps * float(expected[0].abs().max())
    torch.testing.assert_close((weight, bias), expected, rtol=0, atol=bound)
    assert float((expected[0][0] - expected[0][1]).abs().max()) > 100 * bound  # swapped classes would be seen


@pytest.mark.parametrize("method", ["fft-moe", "fedit", "fedsa-lora"])
def test_random_features_are_saved_with_the_head(run_five: RunFive, method: str):
    finished = run_five(method, FOURIER)
    assert finished.head[0].shape == (3, 31)
    assert 0 <= finished.summary["accuracy"] <= 1
    if method not in PERSONAL:
        assert evaluate_run(finished.folder)["accuracy"] == finished.summary["accuracy"]


@pytest.mark.parametrize(
    ("head", "rounds"),
    [
        (FROZEN, [0]),
        ({**CLOSED, "update": "trained", "learning_rate": 0.01}, [0]),
        (CLOSED, [0, 1, 2, 3]),
        ({**CLOSED, "every": 2}, [0, 2, 3]),
        ({**CLOSED, "every": 5}, [0, 3]),
        (AVERAGED, []),
    ],
)
def test_a_head_is_computed_when_it_is_due(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: dict[str, Any], rounds: list[int]
):
    solved = []

    def recorded(state: ServerState, *arguments: Any) -> ServerState:
        solved.append(state.round)
        return solve.solve_head(state, *arguments)

    monkeypatch.setattr(closed_form, "solve_head", recorded)
    run(parse_recipe(five_recipe("fft-moe", head, **{"federation.rounds": 3}), "tiny"), tmp_path / "run")
    assert solved == rounds


def test_a_trained_head_begins_with_the_closed_form_and_leaves_it(run_five: RunFive):
    frozen, trained = (
        run_five("fft-moe", FROZEN),
        run_five("fft-moe", {**FROZEN, "update": "trained", "learning_rate": 0.01}),
    )
    clocks = {"client_seconds", "seconds", "phase_seconds"}
    first, other = ({k: v for k, v in r.rows[0].items() if k not in clocks} for r in (frozen, trained))
    assert first == other
    assert not torch.equal(frozen.head[0], trained.head[0])
    # Clients then send the head as well.
    assert trained.summary["bytes_up"] > frozen.summary["bytes_up"] + 2 * 3 * 4 * 63


def test_feature_statistics_are_counted_once_for_every_client_and_are_no_rounds_of_a_tier(run_five: RunFive):
    solved, frozen = run_five("fft-moe", CLOSED), run_five("fft-moe", FROZEN)
    # float32: the triangle of 21 x 21, 21 x 3, and the scores of 6 x 16.
    tensors = 4 * (21 * 22 // 2 + 21 * 3 + 6 * 16)
    sums_up = frozen.rows[0]["bytes_up"]
    assert 5 * tensors < sums_up < 5 * (tensors + 512)  # and headers
    extra = solved.summary["bytes_up"] - frozen.summary["bytes_up"]
    # Twice more; clients of the two runs may have trained unlike experts, of at least 180 numbers each.
    assert abs(extra - 2 * sums_up) < 2 * 3 * 5 * 4 * 180
    for finished in (solved, frozen):
        tiers = finished.summary["per_client_round_by_tier"].values()
        assert sum(tier["client_rounds"] for tier in tiers) == 2 * 3


@pytest.mark.parametrize("update", ["frozen", "trained", "recomputed"])
def test_a_recipe_that_is_accepted_can_be_run_without_an_adapter(five_recipe: FiveRecipe, tmp_path: Path, update: str):
    recipe = five_recipe("head-only", {**CLOSED, "update": update, "learning_rate": 0.01})
    if update == "recomputed":
        with pytest.raises(InputError, match=r"set head\.update=frozen"):
            parse_recipe(recipe, "tiny")
    else:
        run(parse_recipe(recipe, "tiny"), tmp_path / "run")
        assert Finished(tmp_path / "run").summary["rounds_completed"] == 2


@pytest.mark.parametrize("family", ["distilbert", "gpt2", "roberta"])
def test_a_head_that_statistics_cannot_give_is_refused_before_anything_is_written(
    five_recipe: FiveRecipe, tmp_path: Path, family: str
):
    """DistilBERT's has two layers, GPT-2's no bias, RoBERTa's reads a sequence."""
    FAMILIES[family].make().save_pretrained(tmp_path / "model")  # type: ignore[operator]
    tiny_tokenizer(("ash", "bay")).save_pretrained(tmp_path / "model")
    backbone = {"model": str(tmp_path / "model"), "pooling": "native"}
    with pytest.raises(InputError, match=r"set backbone\.pooling to mean"):
        run(parse_recipe(five_recipe("fft-moe", CLOSED, backbone=backbone), "tiny"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
