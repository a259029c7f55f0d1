"""Watches the load of the experts over the rounds, and raises alarms.

A row's `load` is the server's moving average of the share of routed slots that went to each expert of a block. It is
uneven if an expert stays below a tenth of its even share 1/M for `STARVED_ROUNDS` rounds, or if a block's effective
number of experts, exp(entropy of the load), is below M/2. Experts may well specialise, so an uneven load alone is no
fault: an alarm is raised only while the quality says so too, which it does where the last measured metric is worse than
the best one before it by more than half of the interval at the start.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.records import names
from fftmoe.report.metric import Metric
from fftmoe.shown import count_of

DIGITS = 5
STARVED = 0.1  # of the even share 1/M
STARVED_ROUNDS = 3  # rounds in a row
EFFECTIVE = 0.5  # of the number of experts M
ALARMS_SAID = 3  # of one round, on the terminal
MOST_ALARMS = 100  # kept for a run
RULE = (
    f"The load is uneven where an expert's share of the routed tokens stays below {STARVED:g}/M for {STARVED_ROUNDS} "
    f"rounds, or where the effective number of experts, exp(entropy of the shares), is below {EFFECTIVE:g} M. It "
    "raises an alarm only while the model has also become worse: the metric is worse than its best so far by more than "
    "half the width of the interval at the start."
)


def load_row(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return the load of a server state (`blocks.{i}` -> float64 [M]) as part of a round's row: block -> shares."""
    by_block = {names.block_of_load(name): shares for name, shares in load.items()}
    rounded = {str(block): [round(float(u), DIGITS) for u in shares] for block, shares in sorted(by_block.items())}
    return {"load": rounded} if rounded else {}


def effective_experts(shares: Sequence[float]) -> float:
    """Return exp(entropy of the shares): M if all experts have equal shares, 1 if one expert has everything."""
    total = sum(shares)
    return math.exp(-sum(u / total * math.log(u / total) for u in shares if u > 0)) if total > 0 else 0.0


class Quality:
    """Decides whether the model has become worse, as the rows of a run come in.

    Where the metric or its interval at the start is not known, nobody can tell, and it has not.
    """

    def __init__(self) -> None:
        self._best: float | None = None
        self._last: float | None = None
        self._margin: float | None = None

    def see(self, row: Mapping[str, Any]) -> bool:
        """Enter a row; return whether the last measured metric is worse than the best one by more than the margin."""
        metric = Metric.of({}, [row])
        value, interval = row.get(metric.name), row.get(f"{metric.name}_interval")
        if self._margin is None and interval is not None and None not in interval:
            self._margin = (interval[1] - interval[0]) / 2
        if value is not None and math.isfinite(value):
            self._last = value
            self._best = value if self._best is None or metric.better(value, self._best) else self._best
        return self._last is not None and self.is_worse(self._last, metric)

    def is_worse(self, value: float, metric: Metric) -> bool:
        """Return whether this value is worse than the best one so far by more than the margin."""
        if self._margin is None or self._best is None:
            return False
        return metric.gain(self._best, value) > self._margin


class LoadWatch:
    """Raises alarms while the rows of a run come in; an alarm is not repeated while its condition lasts."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.alarms: list[dict[str, Any]] = []
        self._quality, self._is_worse = Quality(), False
        self._starving: dict[tuple[str, int], int] = {}
        self._told: set[tuple[str, int]] = set()
        self._collapsed: set[str] = set()
        for row in rows:
            self.see(row)

    def see(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the alarms that this row raises: round, block, kind (`starved` or `collapsed`),
        and the kind's numbers.
        """
        found, worse = [], self._quality.see(row)
        self._is_worse = worse
        for block, shares in row.get("load", {}).items():
            at = {"round": row["round"], "block": int(block)}
            if starved := self._starved(block, shares, worse):
                found.append({**at, "kind": "starved", "experts": starved})
            effective = effective_experts(shares)
            if effective >= EFFECTIVE * len(shares):
                self._collapsed.discard(block)
            elif worse and block not in self._collapsed:
                found.append({**at, "kind": "collapsed", "effective": round(effective, 2), "of": len(shares)})
                self._collapsed.add(block)
        self.alarms += found[: MOST_ALARMS - len(self.alarms)]
        return found

    def lasting(self, result: float | None, metric: Metric) -> list[dict[str, Any]]:
        """Return the alarms, if the model is still worse than its best; none if it has recovered since.

        Args:
            result: the metric of the model that is kept; None for a run that goes on.
        """
        still_worse = self._is_worse if result is None else self._quality.is_worse(result, metric)
        return self.alarms if still_worse else []

    def _starved(self, block: str, shares: Sequence[float], worse: bool) -> list[int]:
        """Return the experts whose share has been low for `STARVED_ROUNDS` rounds, once for each,
        if the model is worse.
        """
        reached = []
        for expert, share in enumerate(shares):
            place = block, expert
            low = share < STARVED / len(shares)
            self._starving[place] = (self._starving.get(place, 0) + 1) * low
            if not low:
                self._told.discard(place)
            elif worse and self._starving[place] >= STARVED_ROUNDS and place not in self._told:
                self._told.add(place)
                reached.append(expert)
        return reached


def describe_alarm(alarm: Mapping[str, Any]) -> str:
    """Return an alarm as one line of text."""
    where = f"round {alarm['round']}, block {alarm['block']}"
    if alarm["kind"] == "collapsed":
        return f"{where}: routing has collapsed to {alarm['effective']:.1f} effective experts of {alarm['of']}"
    experts = ", ".join(map(str, alarm["experts"]))
    return f"{where}: hardly any token went to expert {experts} for {STARVED_ROUNDS} rounds"


def alarm_lines(alarms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the alarms of one round as lines for a terminal: the first ones, and how many more there are."""
    lines = [f"alarm: {describe_alarm(alarm)}" for alarm in alarms[:ALARMS_SAID]]
    more = len(alarms) - ALARMS_SAID
    if more <= 0:
        return lines
    return [*lines, f"… and {count_of(more, 'more alarm')} of this round, which the report counts"]
