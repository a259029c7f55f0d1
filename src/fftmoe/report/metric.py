"""The metric that a run is judged by: its name, its numbers as text, and which direction is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOWER_IS_BETTER = ("perplexity", "loss", "mean_absolute_error", "mean_squared_error")
SHARES = ("accuracy", "f1")  # between 0 and 1
NO_VALUE = "–"  # what a table shows where there is no value
# Keys of a summary that were measured on each client's own label mix, for the metric accuracy, and what they are.
OWN_MIX = {
    "client_accuracy": "on each client's own label mix",
    "personal_accuracy": "… with its own experts and router",
    "local_only_client_accuracy": "… with local training only",
}


@dataclass(frozen=True)
class Metric:
    """A metric; `name` is its key in rows and summaries."""

    name: str

    @classmethod
    def of(cls, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> "Metric":
        """The metric that the summary names, or else the rows of an unfinished run; accuracy if neither does."""
        return cls(summary.get("metric") or (rows[-1].get("metric") if rows else None) or "accuracy")

    @property
    def label(self) -> str:
        """The name as people write it."""
        return self.name.replace("_", " ")

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is better."""
        return self.name in LOWER_IS_BETTER

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a < b if self.lower_is_better else a > b

    def gain(self, a: float, b: float) -> float:
        """By how much `a` is better than `b`; negative if it is worse."""
        return b - a if self.lower_is_better else a - b

    @property
    def bounds(self) -> tuple[float, float | None]:
        """The smallest and the largest possible value; None where there is no largest."""
        return 0.0, 1.0 if self.name in SHARES else None

    @property
    def form(self) -> str:
        """The format specification of means and their intervals."""
        return ".3f" if self.name in SHARES else ".4g"

    def text(self, value: float) -> str:
        """A value as text: `0.742`, `12.31`."""
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        """(round, value) of every round in which the metric was measured."""
        return [(row["round"], row[self.name]) for row in rows if row.get(self.name) is not None]
