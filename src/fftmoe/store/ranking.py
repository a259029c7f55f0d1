"""Which round of a run is the best one, by a metric in its rows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranking:
    """Orders the rounds of a run by a metric; an earlier round is before a later one with the same value.

    Attributes:
        metric: the key of the rows that has it. higher_is_better: whether a larger value is a better one.
    """

    metric: str
    higher_is_better: bool

    def ranked(self, rows: Iterable[Mapping[str, Any]]) -> list[int]:
        """The rounds of these rows whose metric is a number, best first."""
        sign = -1 if self.higher_is_better else 1
        known = [(sign * row[self.metric], row["round"]) for row in rows if _is_measured(row.get(self.metric))]
        return [round for _, round in sorted(known)]

    def without_gain(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """How many times the metric was measured since its best round; 0 if it never was a number."""
        measured = [row for row in rows if self.metric in row]
        best = next(iter(self.ranked(measured)), None)
        return 0 if best is None else sum(row["round"] > best for row in measured)


def _is_measured(value: Any) -> bool:
    """Whether a value of a row was measured and is finite."""
    return value is not None and math.isfinite(value)
