"""What the page of a run is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fftmoe.report.metric import Metric


@dataclass(frozen=True)
class Run:
    """A run as its folder keeps it.

    Attributes:
        config: the resolved recipe. rows: of `metrics.jsonl`.
        summary: of `summary.json`; empty as long as the run has not finished.
    """

    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def metric(self) -> Metric:
        """What it is judged by."""
        return Metric.of(self.summary, self.rows)

    @property
    def private(self) -> bool:
        """Whether the server knows nothing of single clients."""
        return self.config.get("privacy") not in (None, False, "off")

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the recipe by its dotted key."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return default if value is None else value
