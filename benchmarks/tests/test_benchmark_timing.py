"""How the benchmarks compare times, on times that are made up."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("timing")


@pytest.fixture
def crossover(timing: Any) -> Any:
    return importlib.import_module("crossover")


class Clock:
    """Moves only when a variant runs; remembers which did."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, []

    def read(self, device: torch.device) -> float:
        return self.now

    def variant(self, name: str, seconds: float) -> Any:
        return partial(self._run, name, seconds)

    def _run(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.ran.append(name)


def test_every_round_runs_all_variants_in_a_new_order(timing: Any, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(timing, "synchronized", clock.read)
    variants = {name: clock.variant(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    seconds = timing.interleave(variants, 7, CPU)
    assert seconds == {"a": [1.0] * 7, "b": [2.0] * 7, "c": [3.0] * 7}
    counted = clock.ran[6:]
    rounds = [tuple(counted[start : start + 3]) for start in range(0, 21, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_a_hopeless_variant_keeps_its_first_time(timing: Any, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(timing, "synchronized", clock.read)
    variants = {"fast": clock.variant("fast", 1.0), "slow": clock.variant("slow", 5.0)}
    assert timing.interleave(variants, 3, CPU, hopeless=4.0) == {"fast": [1.0, 1.0, 1.0], "slow": [5.0]}


def test_ratio_of_medians_with_the_spread_over_blocks_of_rounds(timing: Any):
    ours, base = [2.0, 2.0, 9.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert timing.ratio(ours, base, blocks=2) == (1.5, 1.0, 1.5)
    assert timing.ratio([3.0], base, blocks=3) == (1.5, 1.5, 1.5)


def test_a_rule_is_judged_by_what_it_loses_against_the_fastest(crossover: Any):
    def made_up(experts: int, wide: float, grouped: float) -> Any:
        point = crossover.Point(experts, 16, 1, 256, "float32", 0.0)
        return crossover.Timing(point, {"wide": wide, "grouped": grouped}, {}, 1.0)

    timings = [made_up(2, wide=1.0, grouped=2.0), made_up(4, wide=3.0, grouped=2.0)]
    assert crossover.losses(timings, lambda _: "wide") == (0.25, 0.5)
    # `wide` for 2 experts and `grouped` for 4: 32 <= 16 + b < 64.
    assert crossover.losses(timings, crossover.rule_of(16)) == (0.0, 0.0)
    assert crossover.fit(timings) == 16
