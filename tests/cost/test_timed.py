"""The line through timed points, and the client that is timed."""

import dataclasses
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.cost.timed import RoundTime, TimedBudget
from fftmoe.records import Budget
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.forecast import seconds_by_tier, timed_client, workload
from fftmoe.setup.stacking import clients_per_batch
from round_times import TIMES, budget, seconds


@pytest.fixture
def experiment(recipe_values: dict[str, Any]) -> Experiment:
    return compose(parse_recipe(recipe_values, "test"))


def points(times: RoundTime) -> list[TimedBudget]:
    settings = [(budget(5, 11), 3), (budget(5, 11), 6), (budget(1, 11), 3), (budget(1, 2), 3), (budget(1, 2, 1), 3)]
    return [TimedBudget(b, steps, seconds(b, steps, times)) for b, steps in settings]


def test_a_line_through_exact_points_is_that_line():
    fitted = RoundTime.fitted(points(TIMES))
    assert dataclasses.astuple(fitted) == pytest.approx(dataclasses.astuple(TIMES))
    for b, steps in ((budget(2, 7, 1), 5), (budget(3, 3, 3), 17.5)):
        assert fitted.seconds(b, steps) == pytest.approx(seconds(b, steps))


def test_noise_makes_no_coefficient_negative():
    """A larger top_k that happened to be timed as quicker must not predict that more experts cost less."""
    odd = dataclasses.replace(TIMES, per_top_k=-0.004)
    fitted = RoundTime.fitted(points(odd))
    assert fitted.per_top_k == 0.0
    assert min(dataclasses.astuple(fitted)) >= 0
    assert max(dataclasses.astuple(fitted)) > 0


def test_a_machine_that_takes_twice_as_long_predicts_twice_as_long():
    slow = [dataclasses.replace(point, seconds=2 * point.seconds) for point in points(TIMES)]
    ratio = RoundTime.fitted(slow).seconds(budget(), 7) / TIMES.seconds(budget(), 7)
    assert ratio == pytest.approx(2.0)


def test_a_few_points_are_met_and_their_seconds_grow_with_the_steps():
    """As `time_tiers` fits them: one point a tier, all with the same number of steps."""
    tiers = [budget(1, 4), budget(2, 8), budget(4, 16)]
    few = RoundTime.fitted([TimedBudget(b, 3, seconds(b, 3)) for b in tiers])
    for b in tiers:
        assert few.seconds(b, 3) == pytest.approx(seconds(b, 3))
        assert few.seconds(b, 30) == pytest.approx(10 * seconds(b, 3), rel=0.02)


def test_a_client_is_timed_as_an_average_client_of_a_round(experiment: Experiment):
    client = timed_client(experiment, workload(experiment, experiment.method.init(experiment.model)))
    assert client.steps() == 3.0  # local_steps
    assert client.sample_steps() == 3  # of 113 / 7 = 16 examples in batches of 5: 4 batches, and no more than a round's
    ticks = iter([10.0, 14.5])
    assert client.seconds(experiment.largest, 2, now=lambda: next(ticks)) == 4.5 / clients_per_batch(experiment)
    for chosen in (Budget("any", 1, 1, (2,)), Budget("any", 2, 4, (1, 2))):
        assert client.seconds(chosen, 1) > 0


def test_the_steps_of_epochs_depend_on_the_size_of_every_client(recipe_values: dict[str, Any]):
    federation = {**recipe_values["federation"], "local_epochs": 2, "local_steps": None}
    experiment = compose(parse_recipe({**recipe_values, "federation": federation}, "test"))
    client = timed_client(experiment, workload(experiment, experiment.method.init(experiment.model)))
    batches = [-(-int(size) // 5) for size in experiment.partition.sizes]
    assert client.steps() == pytest.approx(2 * sum(batches) / 7)


def test_seconds_are_predicted_for_every_tier_and_for_none_where_a_loss_is_not_finite(recipe_values: dict[str, Any]):
    experiment = compose(parse_recipe(recipe_values, "test"))
    found = seconds_by_tier(experiment, experiment.method.init(experiment.model))
    assert found.keys() == {"small", "large"}
    assert min(found.values()) > 0
    head, federation = {"kind": "averaged", "learning_rate": 1e30}, {"learning_rate": 1e30}
    diverging = {**recipe_values, "head": head, "federation": {**recipe_values["federation"], **federation}}
    experiment = compose(parse_recipe(diverging, "test"))
    assert seconds_by_tier(experiment, experiment.method.init(experiment.model)) == {}
