"""The forecast as a run announces and records it."""

import io
from pathlib import Path

from rich.console import Console

from fftmoe.cost.prediction import announce_training, predicted_and_measured
from fftmoe.report.progress import Progress


def announced(seconds: dict[str, float], rounds: int = 100) -> str:
    """The announcement to 7 clients of tier small and 3 of tier large, of which 4 take part in a round."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200))
    announce_training(seconds, {"small": 7, "large": 3}, rounds, 4, 1, Path("runs/x"), progress)
    return out.getvalue()


def test_a_run_that_would_take_hours_announces_it():
    # 100 rounds of 4 clients at 0.7 * 20 + 0.3 * 50 = 29 s: 11,600 s.
    text = announced({"small": 20.0, "large": 50.0})
    for words in ("100 rounds", "about 3 h 15 min", "Ctrl-C", "fftmoe resume runs/x", "--set federation.rounds=2"):
        assert words in text, text
    assert "about 19 min" in announced({"small": 20.0, "large": 50.0}, rounds=10)  # 1,160 s
    assert "federation.rounds=2" not in announced({"small": 20.0, "large": 50.0}, rounds=10)


def test_a_short_run_and_one_that_could_not_be_timed_announce_nothing():
    assert announced({"small": 0.1, "large": 0.1}) == ""
    assert announced({}) == ""


def test_predictions_stand_next_to_what_was_measured():
    measured = {
        "small": {"client_rounds": 3, "bytes_down": 70.0, "bytes_up": 50.0, "seconds": 0.5},
        "large": {"client_rounds": 2, "bytes_down": 90.0, "bytes_up": 60.0, "seconds": 0.7},
    }
    predicted = {"small": {"bytes_down": 71, "bytes_up": 53, "training_bytes": 9}}
    assert predicted_and_measured(predicted, {"large": 0.6}, measured) == {
        "small": {
            "bytes_down": {"predicted": 71, "measured": 70.0},
            "bytes_up": {"predicted": 53, "measured": 50.0},
        },
        "large": {"seconds_per_client_round": {"predicted": 0.6, "measured": 0.7}},
    }
