"""The sentence that says how good a run is, against what, and who gains by it."""

from typing import Any

import pytest

from fftmoe.report.answer import answer, gains_of_clients, who_gains


def summary(together: list[float | None], alone: list[float | None], **others: Any) -> dict[str, Any]:
    """Of a run whose clients have these accuracies, with the common model and by themselves."""
    names = [f"site-{place}" for place in range(len(together))]
    return {
        "metric": "accuracy",
        "accuracy": 0.8,
        "client_accuracy": {"mean": 0.75},
        "clients": {"name": names, "accuracy": together, "alone": alone},
        **others,
    }


@pytest.mark.parametrize(
    ("together", "alone", "words"),
    [
        ([0.5, 0.5], [0.5, 0.75], "no client of 2 gains over training alone, each on its own test rows"),
        (
            [0.75],
            [0.5],
            "1 of 1 client gains over training alone, each on its own test rows, and chance alone could give such "
            "numbers",
        ),
        (
            [0.75, 0.5, 0.5],
            [0.5, 0.5, 0.5],
            "1 of 3 clients gains over training alone, each on its own test rows (2 are level), and chance alone could "
            "give such numbers",
        ),
        (
            [0.75] * 6 + [0.5],
            [0.5] * 7,
            "6 of 7 clients gain over training alone, each on its own test rows (1 is level)",
        ),
        ([0.5], [0.5], "1 client is level with training alone, each on its own test rows"),
        ([0.5, 0.7], [0.5, 0.7], "2 clients are level with training alone, each on its own test rows"),
        (
            [0.9] * 8 + [0.1],
            [0.5] * 9,
            "8 of 9 clients gain over training alone, each on its own test rows, and 1 is better alone (site-8)",
        ),
        (
            [0.9] * 3 + [0.1] * 7,
            [0.5] * 10,
            "3 of 10 clients gain over training alone, each on its own test rows, and 7 are better alone "
            "(site-3, site-4, site-5, site-6, site-7 and 2 more), and chance alone could give such numbers",
        ),
        (
            [0.9] * 7 + [None, 0.9],
            [0.5] * 8 + [None],
            "7 of 7 clients gain over training alone, each on its own test rows; 2 more are not compared",
        ),
        ([None], [0.5], ""),
    ],
)
def test_it_says_who_gains_over_training_alone(together: list[float | None], alone: list[float | None], words: str):
    assert who_gains(summary(together, alone)) == words


def test_a_smaller_error_is_a_gain():
    found = summary([], [], metric="mean_absolute_error")
    found["clients"] = {"name": ["a", "b"], "mean_absolute_error": [1.0, 3.0], "alone": [2.0, 2.0]}
    assert gains_of_clients(found) == (["a"], ["b"], 2)


def test_means_stand_for_clients_that_are_not_listed():
    spread = {"client_accuracy": {"mean": 0.75}, "local_only_client_accuracy": {"mean": 0.5}}
    found = {key: value for key, value in summary([], [], **spread).items() if key != "clients"}
    assert who_gains(found) == "clients gain over training alone on average (0.750 against 0.500 alone)"


def test_one_sentence_has_the_result_and_each_baseline():
    baselines = {
        "head_only": {"value": 0.5, "interval": [0.45, 0.55]},
        "alone": {"value": 0.79, "interval": [0.75, 0.83]},
        "centralized": {"value": None, "interval": None, "reason": "switched off"},
    }
    found = summary([0.9], [0.5], accuracy_interval=[0.76, 0.84], baselines=baselines)
    assert answer(found) == (
        "accuracy 0.800 (95 % interval 0.760 to 0.840) is better than the solved head alone (0.500), not clearly "
        "different from training alone (0.790); 1 of 1 client gains over training alone, each on its own test rows, "
        "and chance alone could give such numbers"
    )
    assert "better than the backbone as it is (0.500)" in answer(found, untrained=True)
    assert answer({**found, "baselines": {}}) == ""
