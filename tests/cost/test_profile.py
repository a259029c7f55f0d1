"""Budgets from the machine: what is measured, the line through it, and the largest that fits."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import parse_recipe
from fftmoe.cost import forecast as prediction
from fftmoe.cost import profile as profiles
from fftmoe.cost.forecast import against, resident_mib, seconds_by_tier
from fftmoe.cost.memory import _groups, available_mib, total_mib
from fftmoe.cost.profile import Fit, Limits, Point, Speed, candidates, largest, order
from fftmoe.cost.timing import TimedClient
from fftmoe.data import WithPrefix
from fftmoe.errors import InputError
from fftmoe.methods.budget import ExpertShape, resolve
from fftmoe.methods.budget import Limits as Tier
from fftmoe.records import Budget
from fftmoe.setup.compose import compose
from fftmoe.setup.stacking import clients_at_once
from shared_fixtures import Cli

MIB = 2**20
SPEED = Speed(per_round=0.5, per_step=0.11, per_block=0.07, per_expert=0.013, per_top_k=0.017)


def budget(top_k: int = 1, experts: int = 3, blocks: int = 2) -> Budget:
    return Budget("b", top_k, experts, tuple(range(7 - blocks, 7)))


def seconds(fit: Budget, steps: float, speed: Speed = SPEED) -> float:
    """The docstring of the module, written out."""
    inside = speed.per_block + fit.experts * speed.per_expert + fit.top_k * speed.per_top_k
    return speed.per_round + steps * (speed.per_step + len(fit.blocks) * inside)


def points(speed: Speed) -> list[Point]:
    settings = [(budget(5, 11), 3), (budget(5, 11), 6), (budget(1, 11), 3), (budget(1, 2), 3), (budget(1, 2, 1), 3)]
    return [Point(b, steps, seconds(b, steps, speed), 0.0) for b, steps in settings]


def test_a_line_through_exact_points_is_that_line():
    fitted = Speed.fitted(points(SPEED))
    assert dataclasses.astuple(fitted) == pytest.approx(dataclasses.astuple(SPEED))
    for b, steps in ((budget(2, 7, 1), 5), (budget(3, 3, 3), 17.5)):
        assert fitted.seconds(b, steps) == pytest.approx(seconds(b, steps))


def test_noise_makes_no_coefficient_negative():
    """A larger top_k that happened to be timed as quicker must not promise that more experts cost less."""
    odd = dataclasses.replace(SPEED, per_top_k=-0.004)
    fitted = Speed.fitted(points(odd))
    assert fitted.per_top_k == 0.0
    assert min(dataclasses.astuple(fitted)) >= 0
    assert max(dataclasses.astuple(fitted)) > 0


def fit(b: Budget) -> Fit:
    return Fit(b, seconds(b, 10), 100.0 + 16 * len(b.blocks) * b.experts)


BUDGETS = sorted(
    (budget(k, e, n) for n in (1, 2) for e in range(1, 6) for k in range(1, min(3, e) + 1)), key=order, reverse=True
)


def test_the_largest_has_most_blocks_then_most_experts_then_the_largest_top_k():
    chosen, bound = largest(BUDGETS, fit, Limits(1e9, 1e9))
    assert (len(chosen.budget.blocks), chosen.budget.experts, chosen.budget.top_k) == (2, 5, 3)
    assert "nothing larger" in bound


@pytest.mark.parametrize(
    ("limits", "expected", "words"),
    [
        # 100 + 32 * experts in two blocks: 3 experts take 196 MiB.
        (Limits(1e9, 200.0), (2, 3, 3), ("the memory", "1 of 4 experts in 2 blocks", "228 MiB of 200 MiB", "28 MiB")),
        # Ten steps of two blocks, 4 experts, k = 2: 0.5 + 10 * (0.11 + 2 * (0.07 + 0.052 + 0.034)) = 4.72 s.
        (Limits(4.5, 1e9), (2, 4, 1), ("the deadline", "2 of 4 experts", "4.72 s", "of 4.5 s", "0.22 s too long")),
        # In two blocks even one expert takes 3.6 s, in one block 2.6 s.
        (Limits(3.0, 1e9), (1, 4, 1), ("the deadline",)),
    ],
)
def test_the_tighter_limit_bounds_it_and_is_named(limits: Limits, expected: tuple[int, ...], words: tuple[str, ...]):
    chosen, bound = largest(BUDGETS, fit, limits)
    assert order(chosen.budget) == expected
    assert chosen.seconds <= limits.deadline_seconds
    assert chosen.memory_mib <= limits.memory_mib
    for word in words:
        assert word in bound, bound


def test_where_nothing_fits_the_message_says_by_how_much():
    with pytest.raises(InputError) as caught:
        largest(BUDGETS, fit, Limits(1.0, 110.0))
    for word in ("deadline", "2.6 s", "1.6 s too long", "116 MiB of 110 MiB", "raise --deadline"):
        assert word in str(caught.value), caught.value


def test_memory_is_what_the_machine_and_its_groups_leave():
    assert 0 < available_mib() <= total_mib()


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts_less_what_files_can_give_back(tmp_path: Path, version: int):
    root, process = tmp_path / "cgroup", tmp_path / "self"
    names, cache = (
        (("memory.max", "memory.current"), "inactive_file")
        if version == 2
        else (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file")
    )
    base = root if version == 2 else root / "memory"
    for folder, values in ((base, ("max", 700)), (base / "a", (512, 300)), (base / "a" / "b", (1024, 200))):
        folder.mkdir(parents=True)
        for name, value in zip(names, values, strict=True):
            number = value if isinstance(value, str) else str(value * MIB)
            (folder / name).write_text(f"{2**63 if version == 1 and value == 'max' else number}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cache} {100 * MIB}\n")
    process.write_text("0::/a/b\n" if version == 2 else "5:cpu,cpuacct:/x\n4:memory:/a/b\n")
    groups = [group for group in _groups(root, process) if group[0] < 2**40]
    assert sorted(groups) == [(512.0, 200.0), (1024.0, 100.0)]
    assert min(limit - used for limit, used in _groups(root, process)) == 312.0


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path):
    assert _groups(tmp_path / "none", tmp_path / "none") == [(float("inf"), 0.0)]


def test_a_deadline_in_a_recipe_leaves_out_the_first_blocks():
    """One token of one expert in one block costs 168 + 252 FLOPs (tests/methods/test_budget.py: d = 7, h = 3)."""
    shape, blocks = ExpertShape(7, 3), (1, 3, 5)

    def tier(flops: float, **limits: Any) -> Budget:
        given = Tier("t", 1.0, deadline_seconds=2.0, gflops_per_second=flops * 1000 / 2 / 1e9 * 1.001, **limits)
        return resolve(given, shape=shape, num_experts=4, blocks=blocks, tokens_per_round=1000)

    assert tier(3 * (168 + 252), experts=4).blocks == (1, 3, 5)
    assert tier(2 * (168 + 252), experts=4) == Budget("t", 1, 4, (3, 5))
    assert tier(2 * (168 + 252), experts=4, blocks=(1, 3, 5, 7)[:1]).blocks == (1,)  # stated blocks stay
    assert tier(3 * (168 + 2 * 252), experts=4, top_k=3).blocks == (3, 5)  # and a stated top_k has its time
    assert tier(3 * (168 + 252)) == Budget("t", 1, 4, (1, 3, 5))  # all experts, where nothing else limits them
    with pytest.raises(InputError, match="cannot compute one expert"):
        tier(100, experts=4)


@pytest.fixture
def experiment(recipe_values: dict[str, Any]) -> Any:
    return compose(parse_recipe(recipe_values, "test"))


def test_budgets_to_choose_from_are_those_of_the_recipes_pool(experiment: Any):
    budgets = candidates(experiment)
    assert budgets == sorted(budgets, key=order, reverse=True)
    assert order(budgets[0]) == (2, 5, 2)  # no larger top_k than the recipe has
    assert order(budgets[-1]) == (1, 1, 1)
    assert budgets[-1].blocks == (2,)  # the last block
    assert len(set(budgets)) == 2 * (4 * 2 + 1)


def test_a_timed_client_trains_the_average_client_of_a_round(experiment: Any):
    client = TimedClient(experiment, experiment.method.init(experiment.model))
    assert client.steps() == 3.0  # local_steps
    assert client.sample_steps() == 3  # of 113 / 7 = 16 examples in batches of 5: 4 batches, and no more than a round's
    ticks = iter([10.0, 14.5])
    assert client.seconds(experiment.largest, 2, now=lambda: next(ticks)) == 4.5 / clients_at_once(experiment)
    for chosen in (Budget("any", 1, 1, (2,)), Budget("any", 2, 4, (1, 2))):
        assert client.seconds(chosen, 1) > 0


def test_steps_of_epochs_are_those_of_every_clients_own_rows(recipe_values: dict[str, Any]):
    federation = {**recipe_values["federation"], "local_epochs": 2, "local_steps": None}
    experiment = compose(parse_recipe({**recipe_values, "federation": federation}, "test"))
    client = TimedClient(experiment, experiment.method.init(experiment.model))
    batches = [-(-int(size) // 5) for size in experiment.partition.sizes]
    assert client.steps() == pytest.approx(2 * sum(batches) / 7)


def test_seconds_are_predicted_for_every_tier_and_a_loss_that_is_no_number_for_none(recipe_values: dict[str, Any]):
    experiment = compose(parse_recipe(recipe_values, "test"))
    found = seconds_by_tier(experiment, experiment.method.init(experiment.model))
    assert found.keys() == {"small", "large"}
    assert min(found.values()) > 0
    diverging = {**recipe_values, "head": {"kind": "averaged", "learning_rate": 1e38}}
    experiment = compose(parse_recipe(diverging, "test"))
    assert seconds_by_tier(experiment, experiment.method.init(experiment.model)) == {}


def test_memory_is_expected_for_every_process_and_not_of_clients_elsewhere(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """On 100 MiB now: the files of cached states come on top, and all of it once more for each worker."""
    monkeypatch.setattr(prediction, "peak_rss_mib", lambda: 100.0)
    for engine, processes in (
        ({"workers": 1}, 1),
        ({"workers": 3}, 4),
        ({"workers": 1, "kind": "flower"}, 2),  # even one is Ray's own
    ):
        experiment = compose(parse_recipe({**recipe_values, "engine": engine}, "test"))
        cached = [e.path.stat().st_size for e in (experiment.train, experiment.test) if isinstance(e, WithPrefix)]
        assert sum(cached) > 0
        assert resident_mib(experiment) == pytest.approx(processes * (100 + sum(cached) / 2**20))
    assert resident_mib(dataclasses.replace(experiment, remote=True)) is None


def test_what_was_predicted_is_held_against_what_was_measured():
    measured = {
        "small": {"client_rounds": 3, "bytes_down": 70.0, "bytes_up": 50.0, "seconds": 0.5},
        "large": {"client_rounds": 2, "bytes_down": 90.0, "bytes_up": 60.0, "seconds": 0.7},
    }
    predicted = {"small": {"bytes_down": 71, "bytes_up": 53, "training_bytes": 9}}
    assert against(predicted, {"large": 0.6}, measured) == {
        "small": {
            "bytes_down": {"predicted": 71, "measured": 70.0},
            "bytes_up": {"predicted": 53, "measured": 50.0},
        },
        "large": {"seconds_per_client_round": {"predicted": 0.6, "measured": 0.7}},
    }


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


def test_a_profile_as_json_is_all_that_stands_on_standard_output(cli: Cli, recipe_file: Path):
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
def test_limits_that_cannot_be_kept(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: Any
):
    monkeypatch.chdir(tmp_path)
    outcome = cli("plan", recipe_file, *arguments)
    assert outcome.status == 2, outcome
    for word in words:
        assert word in outcome.err, outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_takes_twice_as_long_predicts_twice_as_long():
    slow = [dataclasses.replace(point, seconds=2 * point.seconds) for point in points(SPEED)]
    ratio = profiles.Speed.fitted(slow).seconds(budget(), 7) / SPEED.seconds(budget(), 7)
    assert ratio == pytest.approx(2.0)
