"""Decides which round of a run is the best one, and which one is kept, by a metric in its rows.

A few hundred rows measure a metric to a point or two. The round with the best value is then often an early one that was
lucky, while the model still became better. So the round that is kept is the last one that is no worse than the best by
more than one standard error, as in the choice of a tree's size by Breiman et al. (Classification and Regression Trees,
1984, section 3.4.3). It must also be no worse than the model before the first round: where training gains nothing, a
later round within the error would otherwise be kept in its place.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BAR = "bar_to_keep"
"""The key of a row for `Ranking.bar`, of all rows up to this one."""


@dataclass(frozen=True)
class Ranking:
    """Orders the rounds of a run by a metric.

    Attributes:
        metric: the key of the rows that has it. higher_is_better: whether a larger value is a better one.
        error: the key that has its standard error; rows without it have none.
    """

    metric: str
    higher_is_better: bool
    error: str = ""

    def best(self, rows: Iterable[Mapping[str, Any]]) -> int | None:
        """Return the round with the best value, the first of equals; None where no row has a number for the metric."""
        return min(self._measured(rows), key=lambda row: (self._cost(row), row["round"]), default={}).get("round")

    def bar(self, rows: Iterable[Mapping[str, Any]]) -> float | None:
        """Return the worst value with which a round may be kept.

        It is no worse than the best of these rows by more than the standard error of the best, nor than the value
        before the first round.
        """
        measured = self._measured(rows)
        if not measured:
            return None
        best = min(measured, key=self._cost)
        value, error = best[self.metric], best.get(self.error) or 0.0
        start = next((row[self.metric] for row in measured if row["round"] == 0), None)
        within_error = value - error if self.higher_is_better else value + error
        if start is None:
            return within_error
        return max(within_error, start) if self.higher_is_better else min(within_error, start)

    def ranked(self, rows: Iterable[Mapping[str, Any]]) -> list[int]:
        """Return the rounds of these rows in the order in which they are kept.

        First the rounds that reach the bar of the last of these rows, the last round first; then the others, the best
        first.
        """
        measured = sorted(self._measured(rows), key=lambda row: -row["round"])
        bar = next((row[BAR] for row in measured if row.get(BAR) is not None), self.bar(measured))
        if bar is None:
            return []

        def place(row: Mapping[str, Any]) -> tuple[bool, float]:
            below = self._cost(row) > self._sign * bar
            return below, self._cost(row) if below else 0.0  # sorting keeps the order of equal places

        return [row["round"] for row in sorted(measured, key=place)]

    def without_gain(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Return how many times the metric was measured since its best round; 0 if it never was a number."""
        measured = [row for row in rows if self.metric in row]
        best = self.best(measured)
        return 0 if best is None else sum(row["round"] > best for row in measured)

    @property
    def _sign(self) -> int:
        return -1 if self.higher_is_better else 1

    def _cost(self, row: Mapping[str, Any]) -> float:
        return self._sign * row[self.metric]

    def _measured(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the rows in which the metric was measured and is finite."""
        return [row for row in rows if (value := row.get(self.metric)) is not None and math.isfinite(value)]
