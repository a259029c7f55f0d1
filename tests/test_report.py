"""What a person sees: sizes, progress lines, trackers, the page."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fftmoe.errors import InputError
from fftmoe.report.html import report_page
from fftmoe.report.progress import Progress, size
from fftmoe.report.trackers import Trackers, check_trackers

ROWS = [
    {"round": 0, "accuracy": 0.25, "bytes_down": 0, "bytes_up": 0},
    {"round": 1, "accuracy": None, "train_loss": 1.5, "bytes_down": 2048, "bytes_up": 1000},
    {"round": 2, "accuracy": 0.75, "train_loss": 1.25, "bytes_down": 5 * 2**20, "bytes_up": 2**20},
]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3.4 * 2**20, "3.4 MiB"),
        (2**40, "1.0 TiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_for_people(num_bytes: float, text: str):
    assert size(num_bytes) == text


def shown(terminal: bool) -> str:
    buffer = io.StringIO()
    progress = Progress(Console(file=buffer, force_terminal=terminal, width=100))
    with progress.rounds(2, 3):
        for row in ROWS:
            progress.client_done(0)
            progress.round_done(row)
    return buffer.getvalue()


def test_a_round_is_one_plain_line_where_there_is_no_terminal():
    assert shown(terminal=False).splitlines() == [
        "round   0  accuracy 0.250  down 0 B  up 0 B",
        "round   1  loss 1.500  down 2.0 KiB  up 1000 B",
        "round   2  loss 1.250  accuracy 0.750  down 5.0 MiB  up 1.0 MiB",
    ]


def test_a_terminal_gets_bars_beside_the_lines():
    text = shown(terminal=True)
    assert "round   2  loss 1.250" in text
    assert "2/2" in text


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]):
    progress = Progress.silent()
    progress.say("hello")
    with progress.rounds(2, 3):
        progress.round_done(ROWS[1])
    assert capsys.readouterr() == ("", "")


def test_an_unknown_tracker_names_the_nearest():
    with pytest.raises(InputError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    check_trackers([])
    check_trackers(["tensorboard"])


def test_every_number_of_a_round_is_tracked_and_nothing_else(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(["tensorboard"], tmp_path, "run")
    for row in ROWS:
        trackers.log({**row, "by_tier": {"small": 1.0}})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "trackers"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"accuracy", "train_loss", "bytes_down", "bytes_up"}
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(0, 0.25), (2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(1, 1.5), (2, 1.25)]


def summary() -> dict[str, Any]:
    return {
        "method": "fft-moe <1>",
        "seed": 3,
        "rounds_completed": 2,
        "accuracy": 0.75,
        "accuracy_by_tier": {"<b>small</b>": 0.5, "large": 0.75},
        "client_accuracy": {"mean": 0.7, "worst_decile": 0.125},
        "bytes_down": 5 * 2**20,
        "bytes_up": 2**20,
        "seconds": 61.4,
    }


def test_a_page_shows_the_outcome_and_loads_nothing():
    load = {f"blocks.{block}": torch.full((5,), 0.2, dtype=torch.float64) for block in (2, 10)}
    page = report_page(summary(), ROWS, load)
    for text in ("0.750", "0.125", "5.0 MiB / 1.0 MiB", "fft-moe &lt;1&gt;, seed 3", "&lt;b&gt;small&lt;/b&gt;"):
        assert text in page
    assert page.count("<svg") == 2
    assert external_loads(page) == []


def external_loads(page: str) -> list[str]:
    """Addresses that a browser would fetch; names of namespaces and of formats are not among them."""
    inside = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'#\s>]+)""", page)
    inside = [address for address in inside if not address.startswith("data:")]  # a picture in the page itself
    return inside + re.findall(r"url\(([^#)][^)]*)\)|@import", page)


def test_the_search_for_loads_would_find_some():
    page = """<script src="https://x.org/a.js"></script><p style="background:url(https://x.org/b.png)">"""
    assert external_loads(page) == ["https://x.org/a.js", "https://x.org/b.png"]
