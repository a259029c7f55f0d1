"""The time left, as a run shows it."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from fftmoe.report.progress import Progress, duration


def row(number: int) -> dict[str, Any]:
    return {"round": number, "accuracy": None, "bytes_down": 0, "bytes_up": 0}


def shown(seconds: Sequence[float], num_rounds: int, done: int = 0) -> list[str]:
    """The lines that a run with these round times prints."""
    now = [0.0]
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200), clock=lambda: now[0])
    with progress.rounds(num_rounds, 3, done):
        for number, took in enumerate(seconds, done + 1):
            now[0] += took
            progress.round_done(row(number))
    return out.getvalue().splitlines()


def test_the_time_left_is_the_remaining_rounds_times_the_median_of_recent_rounds():
    lines = shown([120, 120, 3000, 120], num_rounds=14)
    assert [line.rpartition("  ")[2] for line in lines] == [
        "about 26 min left",
        "about 24 min left",
        "about 22 min left",  # one slow round does not change the estimate
        "about 20 min left",
    ]


def test_the_time_left_ignores_old_rounds_and_rounds_before_a_resume():
    lines = shown([60] * 5 + [240] * 3, num_rounds=30, done=10)
    assert "about 19 min left" in lines[0]
    assert "about 48 min left" in lines[-1]  # 12 rounds at the median of 60, 60, 240, 240, 240


@pytest.mark.parametrize(("passed", "words"), [(0, "24 min"), (300, "19 min"), (1400, "40 s"), (1440, None)])
def test_on_a_terminal_the_time_left_moves_within_a_round(
    passed: int, words: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    now, out = [0.0], io.StringIO()
    progress = Progress(Console(file=out, width=200, force_terminal=True), clock=lambda: now[0])
    with progress.rounds(13, 3):
        now[0] += 120
        progress.round_done(row(1))
        progress.client_done(0)
        now[0] += passed
    last = out.getvalue().split("rounds ")[-1]  # the bars as they are left
    assert "1/3" in last
    assert ("left" not in last) if words is None else (f"about {words} left" in last)


def test_a_short_time_left_is_not_shown():
    assert not any("left" in line for line in shown([1.0, 1.0, 1.0], num_rounds=9))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (61, "61 s"),
        (100, "2 min"),
        (3560, "59 min"),
        (3590, "1 h"),
        (12_000, "3 h 20 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_is_rounded_as_an_estimate(seconds: float, text: str):
    assert duration(seconds) == text
