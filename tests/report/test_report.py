"""What a person sees of a run outside its page: sizes, progress lines, alarms, and which client used which expert."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fftmoe.records import Budget, ClientPlan, ClientUpdate, RoundPlan, Training
from fftmoe.report.load import LoadWatch, alarm_lines, describe_alarm, effective_experts, load_row
from fftmoe.report.progress import Progress, size
from fftmoe.report.usage import RECORDED_CLIENTS, Counts, Usage, as_bits, count, from_bits
from reports import rows

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
def test_sizes_as_text(num_bytes: float, text: str):
    assert size(num_bytes) == text


def shown(terminal: bool) -> str:
    buffer = io.StringIO()
    progress = Progress(Console(file=buffer, force_terminal=terminal, width=100))
    with progress.rounds(2, 3):
        for row in ROWS:
            progress.client_done(0)
            progress.round_done(row)
    return buffer.getvalue()


def test_without_a_terminal_a_round_is_one_plain_line():
    assert shown(terminal=False).splitlines() == [
        "round   0  accuracy 0.250  down 0 B  up 0 B",
        "round   1  loss 1.500  down 2.0 KiB  up 1000 B",
        "round   2  loss 1.250  accuracy 0.750  down 5.0 MiB  up 1.0 MiB",
    ]


def test_a_terminal_shows_bars_and_lines():
    text = shown(terminal=True)
    assert "round   2  loss 1.250" in text
    assert "2/2" in text


def test_a_silent_progress_prints_nothing(capsys: pytest.CaptureFixture[str]):
    progress = Progress.silent()
    progress.say("hello")
    with progress.rounds(2, 3):
        progress.round_done(ROWS[1])
    assert capsys.readouterr() == ("", "")


# ---- who uses which expert ------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 200)))
def test_experts_as_bits_and_back(experts: set[int]):
    assert from_bits(as_bits(experts)) == tuple(sorted(experts))


def test_held_and_trained_experts_are_recorded_while_updates_pass():
    held = {1: {4: (0, 1, 4), 11: (2,)}, 3: {4: (3,)}, 6: {}}
    budget = Budget("small", 1, 3, (4, 11))
    training = Training(batch_size=2, learning_rate=0.1, head_learning_rate=0.1, local_steps=1)
    plan = RoundPlan(2, tuple(ClientPlan(2, c, 0, budget, experts, training) for c, experts in held.items()))
    updates = [ClientUpdate(2, 1, 5, {}, {4: (0, 4)}), ClientUpdate(2, 6, 5, {})]  # client 3 did not answer
    usage = Usage(plan)
    assert list(usage.watch(updates)) == updates
    assert usage.row() == {"experts": {"1": {"4": ["13", "11"], "11": ["4", "0"]}}}
    assert Usage(plan).row() == {}


def test_a_row_stays_short_for_a_large_cohort():
    budget = Budget("small", 1, 3, (4,))
    training = Training(batch_size=2, learning_rate=0.1, head_learning_rate=0.1, local_steps=1)
    plan = RoundPlan(1, tuple(ClientPlan(1, c, 0, budget, {4: (1,)}, training) for c in range(1009)))
    usage = Usage(plan)
    assert len(list(usage.watch(ClientUpdate(1, c, 5, {}, {4: (1,)}) for c in range(1009)))) == 1009
    assert list(usage.row()["experts"]) == [str(c) for c in range(RECORDED_CLIENTS)]


def test_held_and_trained_experts_are_counted_over_the_rounds():
    first, second = (
        {"experts": {"1": {"4": ["13", "11"]}, "10": {"4": ["1", "1"]}}},
        {"experts": {"1": {"4": ["3", "1"]}}},
    )
    assert count([{}, first, second]) == {
        4: Counts(held={1: {0: 2, 1: 2, 4: 1}, 10: {0: 1}}, trained={1: {0: 2, 4: 1}, 10: {0: 1}}, rounds={1: 2, 10: 1})
    }
    assert count([{"round": 0}]) == {}


# ---- load and alarms ------------------------------------------------------------------------------------------------


def test_effective_experts_are_the_exponential_of_the_entropy():
    assert effective_experts([0.2] * 5) == pytest.approx(5)
    assert effective_experts([0.0, 1.0, 0.0]) == 1
    assert effective_experts([0.5, 0.25, 0.25]) == pytest.approx(2 * 2**0.5)  # 1.5 bits
    assert effective_experts([0.0, 0.0]) == 0


def test_a_row_has_the_load_of_every_block_in_order():
    load = {f"blocks.{block}": torch.full((3,), 1 / 3, dtype=torch.float64) for block in (10, 9)}
    assert list(load_row(load)["load"].items()) == [("9", [0.33333] * 3), ("10", [0.33333] * 3)]
    assert load_row({}) == {}


START = {"round": 0, "metric": "accuracy", "accuracy": 0.7, "accuracy_interval": [0.6, 0.8]}


def seen(
    *rounds: list[float], values: tuple[float | None, ...] = (0.4,), start: dict[str, Any] = START
) -> list[tuple[int, str]]:
    """The alarms of rounds with these loads and metrics, the last of which stays."""
    watch = LoadWatch([start])
    kept = [*values, *[values[-1]] * len(rounds)]
    return [
        (t, alarm["kind"])
        for t, shares in enumerate(rounds, 1)
        for alarm in watch.see({"round": t, "metric": "accuracy", "accuracy": kept[t - 1], "load": {"4": shares}})
    ]


EVEN, STARVING, COLLAPSED = [0.2] * 5, [0.01, 0.24, 0.25, 0.25, 0.25], [0.7, 0.21, 0.03, 0.03, 0.03]


def test_an_expert_that_gets_nothing_for_three_rounds_raises_an_alarm_once():
    assert seen(*[STARVING] * 2, EVEN, *[STARVING] * 2) == []
    assert seen(*[STARVING] * 7) == [(3, "starved")]
    assert seen(*[STARVING] * 3, EVEN, *[STARVING] * 3) == [(3, "starved"), (7, "starved")]
    assert seen(*[[0.02, 0.23, 0.25, 0.25, 0.25]] * 7) == []  # a tenth of the even share, not below it


def test_a_block_that_uses_few_experts_raises_one_alarm_until_it_recovers():
    few = [0.5, 0.4, 0.04, 0.03, 0.03]
    assert effective_experts(few) == pytest.approx(2.9, abs=0.1)
    assert seen(few) == []
    assert effective_experts(COLLAPSED) < 2.5
    assert seen(COLLAPSED, COLLAPSED, EVEN, COLLAPSED) == [(1, "collapsed"), (4, "collapsed")]


def test_an_uneven_load_is_no_alarm_while_the_model_becomes_better_or_stays():
    """The margin is half the width of the first interval, 0.1, and the best value counts."""
    uneven = [COLLAPSED] * 5
    assert seen(*uneven, values=(0.7, 0.75, 0.8)) == []
    assert seen(*uneven, values=(0.7, 0.61)) == []
    assert seen(*uneven, values=(0.59,)) == [(1, "collapsed")]
    assert seen(*uneven, values=(0.8, 0.71)) == []
    assert seen(*uneven, values=(0.8, None, 0.69)) == [(3, "collapsed")]  # the load was uneven before
    assert seen(*[STARVING] * 6, values=(0.8, 0.8, 0.8, 0.8, 0.5)) == [(5, "starved")]


def test_without_a_metric_or_its_interval_nobody_can_tell_that_the_model_is_worse():
    assert seen(*[COLLAPSED] * 3, start={"round": 0, "metric": "accuracy", "accuracy": 0.7}) == []
    assert seen(*[COLLAPSED] * 3, values=(None,)) == []


def test_a_lower_metric_is_worse_where_higher_is_better_only():
    rows = [
        {"round": 0, "metric": "perplexity", "perplexity": 9.0, "perplexity_interval": [8.0, 10.0]},
        {"round": 1, "metric": "perplexity", "perplexity": 5.0, "load": {"4": COLLAPSED}},
    ]
    assert LoadWatch(rows).alarms == []
    assert [alarm["kind"] for alarm in LoadWatch([*rows, {**rows[1], "round": 2, "perplexity": 6.5}]).alarms] == [
        "collapsed"
    ]


def test_alarms_are_sentences_and_a_resumed_run_raises_the_same():
    recorded = rows(values=(0.75, None, 0.5, 0.25))
    recorded[0]["accuracy_interval"] = [0.7, 0.8]
    watch = LoadWatch(recorded)
    assert [describe_alarm(alarm) for alarm in watch.alarms] == [
        "round 3, block 11: routing has collapsed to 1.4 effective experts of 5"
    ]
    resumed = LoadWatch(recorded[:2])
    for row in recorded[2:]:
        resumed.see(row)
    assert resumed.alarms == watch.alarms
    starved = {"round": 5, "block": 2, "kind": "starved", "experts": [0, 7]}
    assert describe_alarm(starved) == "round 5, block 2: hardly any token went to expert 0, 7 for 3 rounds"


def test_a_terminal_does_not_list_the_alarms_of_31_blocks():
    recorded = {"round": 1, "metric": "accuracy", "accuracy": 0.2, "load": {str(b): COLLAPSED for b in range(31)}}
    start = {"round": 0, "metric": "accuracy", "accuracy": 0.7, "accuracy_interval": [0.6, 0.8]}
    alarms = LoadWatch([start]).see(recorded)
    assert len(alarms) == 31
    lines = alarm_lines(alarms)
    assert len(lines) == 4
    assert lines[0] == "alarm: round 1, block 0: routing has collapsed to 2.4 effective experts of 5"
    assert lines[-1] == "… and 28 more alarms of this round, which the report counts"
    assert len(alarm_lines(alarms[:3])) == 3
    assert alarm_lines(alarms[:4])[3] == "… and 1 more alarm of this round, which the report counts"
    assert alarm_lines([]) == []
