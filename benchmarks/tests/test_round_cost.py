"""How the benchmark compares the rounds of two checkouts, on times that are made up."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def round_cost(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("round_cost")


def test_the_first_and_the_last_round_do_not_count(round_cost: Any, tmp_path: Path):
    rows = [{"round": number, "seconds": seconds} for number, seconds in enumerate((1.0, 8.0, 10.0, 13.0, 29.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert round_cost.rounds_of(tmp_path) == [2.0, 3.0]


def test_a_ratio_is_that_of_one_pair_and_slow_rounds_do_not_change_it(round_cost: Any):
    pairs = [
        {"this": [3.0, 3.0, 99.0], "other": [2.0, 2.0, 2.0]},
        {"this": [6.0, 6.0, 6.0], "other": [88.0, 6.0, 6.0]},
        {"this": [11.0, 11.0, 11.0], "other": [10.0, 10.0, 10.0]},
    ]
    assert round_cost.ratios(pairs) == [1.5, 1.0, 1.1]
    row = round_cost.table_row("deployment", pairs)
    assert row == ["deployment", "6.000", "6.000", "1.100 (1.000 to 1.500)", "3"]


def test_the_two_checkouts_begin_in_turn(round_cost: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    order: list[Path] = []

    class Made:
        def __init__(self, work: Path) -> None:
            self.work = work

    def timed(checkout: Made, name: str) -> list[float]:
        (checkout.work / name).mkdir(parents=True)
        order.append(checkout.work)
        return [1.0]

    monkeypatch.setitem(round_cost.KINDS, "deployment", timed)
    checkouts = {name: Made(tmp_path / name) for name in ("this", "other")}
    for number in range(2):
        pair = round_cost.measure(checkouts, "deployment", number)
        assert (pair["this"], pair["other"]) == ([1.0], [1.0])
    assert order == [tmp_path / name for name in ("this", "other", "other", "this")]
