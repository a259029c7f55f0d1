"""Holds what the page of a run is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records.client_names import client_name
from fftmoe.report.metric import Metric
from fftmoe.shown import count_of


@dataclass(frozen=True)
class RunRecord:
    """Describes a run as its folder keeps it.

    Attributes:
        config: the resolved recipe.
        rows: the lines of `metrics.jsonl`.
        summary: `summary.json`; empty for a run that has not finished.
        folder: as a command names it. over_sites: its clients were sites, which only `fftmoe deploy` reaches.
    """

    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    folder: str = "RUN"
    over_sites: bool = False

    @property
    def metric(self) -> Metric:
        """Return the metric that the run is judged by."""
        return Metric.of(self.summary, self.rows)

    def client_name(self, client_id: int | str) -> str:
        """Return the name that the data gives a client, or its number."""
        return client_name(client_id, self.summary.get("client_names"))

    @property
    def capabilities(self) -> Capabilities | None:
        """Return the capabilities of the run's method; None for a plug-in whose run has not finished."""
        spec = METHODS.get(self.setting("method", ""))
        stated = self.summary.get("capabilities")  # of a plug-in
        if spec is None and isinstance(stated, Mapping):
            return Capabilities(
                **{field.name: stated[field.name] for field in fields(Capabilities) if field.name in stated}
            )
        return None if spec is None else spec.capabilities

    @property
    def private(self) -> bool:
        """Return whether the server knows nothing about single clients."""
        return self.config.get("privacy") not in (None, False, "off")

    @property
    def epsilon(self) -> list[tuple[float, float]]:
        """Return (round, epsilon spent so far) of a differentially private run; empty for others."""
        spent = [(row["round"], row.get("epsilon", row.get("example_epsilon"))) for row in self.rows]
        return [(round, epsilon) for round, epsilon in spent if epsilon is not None]

    @property
    def privacy_settings(self) -> Mapping[str, Any]:
        """Return the part of the recipe that states the guarantee: `privacy.examples` or `privacy`."""
        stated = self.setting("privacy.examples") or self.setting("privacy")
        return stated if isinstance(stated, Mapping) else {}

    def setting(self, path: str, default: Any = None) -> Any:
        """Return a value of the recipe by its dotted key; `default` where it is missing or None."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return default if value is None else value


def with_noun(value: Any, noun: str) -> str:
    """Return a value of a file with its noun, as `count_of` does; what is no whole number stands before the plural."""
    return count_of(value, noun) if isinstance(value, int) else f"{value} {noun}s"
