"""Budgets, and the seconds of their rounds by the formula of `fftmoe/cost/timed.py`, for the tests of forecasts."""

from fftmoe.cost.timed import RoundTime
from fftmoe.records import Budget

TIMES = RoundTime(per_round=0.5, per_step=0.11, per_block=0.07, per_expert=0.013, per_top_k=0.017)


def budget(top_k: int = 1, experts: int = 3, blocks: int = 2) -> Budget:
    """A budget in so many of the last of seven blocks."""
    return Budget("b", top_k, experts, tuple(range(7 - blocks, 7)))


def seconds(of: Budget, steps: float, times: RoundTime = TIMES) -> float:
    """The formula, written out in full."""
    inside = times.per_block + of.experts * times.per_expert + of.top_k * times.per_top_k
    return times.per_round + steps * (times.per_step + len(of.blocks) * inside)
