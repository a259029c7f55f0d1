"""THE metric of a run: its name, its numbers as text, and which way is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOWER_IS_BETTER = ("perplexity", "loss", "mean_absolute_error", "mean_squared_error")
SHARES = ("accuracy", "f1")  # between 0 and 1


@dataclass(frozen=True)
class Metric:
    """What a run is judged by; `name` is its key in rows and summaries."""

    name: str

    @classmethod
    def of(cls, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> "Metric":
        """As the summary names it, or, of a run that has none yet, its rows; accuracy where nothing does."""
        return cls(summary.get("metric") or (rows[-1].get("metric") if rows else None) or "accuracy")

    @property
    def label(self) -> str:
        """For people."""
        return self.name.replace("_", " ")

    @property
    def lower_is_better(self) -> bool:
        """Whether it is an error."""
        return self.name in LOWER_IS_BETTER

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a < b if self.lower_is_better else a > b

    @property
    def bounds(self) -> tuple[float, float | None]:
        """Between which it can be."""
        return 0.0, 1.0 if self.name in SHARES else None

    @property
    def form(self) -> str:
        """As `format` takes it, of means and their intervals."""
        return ".3f" if self.name in SHARES else ".4g"

    def text(self, value: float) -> str:
        """`0.742`, `12.31`."""
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        """(round, value) where it was measured."""
        return [(row["round"], row[self.name]) for row in rows if row.get(self.name) is not None]
