"""`fftmoe plan --measure`: the largest budget that fits this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import parse_recipe
from fftmoe.cost.analytic import budget_order
from fftmoe.cost.measured import PredictedRound, RoundLimits, candidate_budgets, largest_within
from fftmoe.errors import InputError
from fftmoe.records import Budget
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.forecast import workload
from round_times import budget, seconds
from shared_fixtures import Cli


@pytest.fixture
def experiment(recipe_values: dict[str, Any]) -> Experiment:
    return compose(parse_recipe(recipe_values, "test"))


def predict(b: Budget) -> PredictedRound:
    return PredictedRound(b, seconds(b, 10), 100.0 + 16 * len(b.blocks) * b.experts)


BUDGETS = sorted(
    (budget(k, e, n) for n in (1, 2) for e in range(1, 6) for k in range(1, min(3, e) + 1)),
    key=budget_order,
    reverse=True,
)


def test_the_largest_has_most_blocks_then_most_experts_then_the_largest_top_k():
    chosen, bound = largest_within(BUDGETS, predict, RoundLimits(1e9, 1e9))
    assert (len(chosen.budget.blocks), chosen.budget.experts, chosen.budget.top_k) == (2, 5, 3)
    assert "nothing larger" in bound


@pytest.mark.parametrize(
    ("limits", "expected", "words"),
    [
        # 100 + 32 * experts in two blocks: 3 experts take 196 MiB.
        (
            RoundLimits(1e9, 200.0),
            (2, 3, 3),
            ("the memory", "1 of 4 experts in 2 blocks", "228 MiB of 200 MiB", "28 MiB"),
        ),
        # Ten steps of two blocks, 4 experts, k = 2: 0.5 + 10 * (0.11 + 2 * (0.07 + 0.052 + 0.034)) = 4.72 s.
        (RoundLimits(4.5, 1e9), (2, 4, 1), ("the deadline", "2 of 4 experts", "4.72 s", "of 4.5 s", "0.22 s too long")),
        # In two blocks even one expert takes 3.6 s, in one block 2.6 s.
        (RoundLimits(3.0, 1e9), (1, 4, 1), ("the deadline",)),
    ],
)
def test_the_tighter_limit_decides_and_is_named(limits: RoundLimits, expected: tuple[int, ...], words: tuple[str, ...]):
    chosen, bound = largest_within(BUDGETS, predict, limits)
    assert budget_order(chosen.budget) == expected
    assert chosen.seconds <= limits.deadline_seconds
    assert chosen.memory_mib <= limits.memory_mib
    for word in words:
        assert word in bound, bound


def test_where_nothing_fits_the_message_says_by_how_much():
    with pytest.raises(InputError) as caught:
        largest_within(BUDGETS, predict, RoundLimits(1.0, 110.0))
    for word in ("deadline", "2.6 s", "1.6 s too long", "116 MiB of 110 MiB", "raise --deadline"):
        assert word in str(caught.value), caught.value


def test_every_budget_of_the_recipes_pool_is_a_candidate(experiment: Experiment):
    budgets = candidate_budgets(workload(experiment, experiment.method.init(experiment.model)))
    assert budgets == sorted(budgets, key=budget_order, reverse=True)
    assert budget_order(budgets[0]) == (2, 5, 2)  # no larger top_k than the recipe has
    assert budget_order(budgets[-1]) == (1, 1, 1)
    assert budgets[-1].blocks == (2,)  # the last block
    assert len(set(budgets)) == 2 * (4 * 2 + 1)


def test_plan_measures_this_machine_and_writes_a_tier_that_a_recipe_can_take(
    cli: Cli, recipe_file: Path, recipe_values: dict[str, Any], tmp_path: Path
):
    path = tmp_path / "budget.yaml"
    outcome = cli("plan", recipe_file, "--measure", "--deadline", 500, "--uplink-mbit", 3, "--write", path)
    assert outcome.status == 0, outcome.err
    for word in ("2 of 5 experts in 2 blocks", "median of 3", "spread", "what bounds it: the recipe's pool", str(path)):
        assert word in outcome.out, outcome.out
    text = path.read_text()
    assert text in outcome.out
    written = yaml.safe_load(text)
    assert written == {"budgets": [{"name": "measured", "fraction": 1.0, "top_k": 2, "experts": 5, "blocks": "last-2"}]}
    parse_recipe({**recipe_values, **written}, "test")
    again = cli("plan", recipe_file, "--measure", "--write", path)
    assert (again.status, path.read_text()) == (2, text)
    assert "--force" in again.err


def test_a_profile_as_json_is_all_of_standard_output(cli: Cli, recipe_file: Path):
    outcome = cli("plan", recipe_file, "--measure", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert len(found["points"]) == 5
    assert found["limits"]["deadline_seconds"] == 3600.0  # the recipe's
    assert found["chosen"]["budget"]["experts"] == 5
    assert {tier["budget"]["name"] for tier in found["tiers"]} == {"small", "large"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--deadline", "3"), ("--deadline", "add --measure")),
        (("--write", "x.yaml"), ("--write", "add --measure")),
        (("--measure", "--deadline", "0"), ("--deadline is 0", "above 0")),
        (("--measure", "--uplink-mbit", "-1"), ("--uplink-mbit is -1", "above 0")),
        (("--measure", "--write", "nowhere/x.yaml"), ("nowhere", "no folder")),
        (("--measure", "--deadline", "1e-9"), ("no budget fits", "s too long", "raise --deadline")),
        (("--measure", "--memory-mib", "1"), ("no budget fits", "MiB too much", "--memory-mib")),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: Any
):
    monkeypatch.chdir(tmp_path)
    outcome = cli("plan", recipe_file, *arguments)
    assert outcome.status == 2, outcome
    for word in words:
        assert word in outcome.err, outcome.err
    assert list(tmp_path.iterdir()) == []
