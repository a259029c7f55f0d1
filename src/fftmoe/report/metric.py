"""Describes the metric that a run is judged by: its name, its numbers as text, and which direction is better."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

LOWER_IS_BETTER = ("perplexity", "loss", "mean_absolute_error", "mean_squared_error")
SHARES = ("accuracy", "f1", "preference_accuracy")  # between 0 and 1
EXPLAINED = "the part of the targets' variance that is explained; their mean alone explains 0"
"""What R² is, the coefficient of determination: the baseline of a prediction of numbers."""
NO_VALUE = "–"  # what a table shows where there is no value
OWN_ROWS = "on each client's own test rows"
REWEIGHTED = "on all test rows, reweighted to each client's labels"
# Beginnings of the keys of a summary with clients' own values, and what they are.
_OWN_VALUES = {
    "client": OWN_ROWS,
    "personal": "… with its own experts and router",
    "local_only_client": "… with local training only",
    "reweighted": REWEIGHTED,
    "reweighted_personal": "… with its own experts and router",
    "reweighted_local_only": "… with local training only",
}
# What `own_data` of a summary calls them.
_IN_OWN_DATA = {
    "client": "global",
    "reweighted": "global",
    "local_only_client": "alone",
    "reweighted_local_only": "alone",
}
_ALWAYS_REWEIGHTED = 1  # summaries up to this version have reweighted values under the names of clients' own


JUDGED = "metric_judged"  # key of what a task says of a metric whose name is not known here


class Judge(Protocol):
    """Describes the metric of a task (`fftmoe.tasks.Task`)."""

    @property
    def metric(self) -> str:
        """Return its name."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Return whether a better model has a higher value."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest possible value."""
        ...


@dataclass(frozen=True)
class Metric:
    """Describes a metric; `name` is its key in rows and summaries.

    Attributes:
        judged: what the task of an own metric says of it, `{"higher_is_better", "bounds"}`; empty for the metrics of
            this package, which are known by their names.
    """

    name: str
    judged: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> "Metric":
        """Return the metric that the summary names, or else the rows of an unfinished run; accuracy if neither does."""
        source = summary if summary.get("metric") or not rows else rows[-1]
        judged = source.get(JUDGED)
        return cls(source.get("metric") or "accuracy", judged if isinstance(judged, Mapping) else {})

    @classmethod
    def of_task(cls, task: Judge) -> "Metric":
        """Return the metric by which a task judges."""
        if task.metric in (*LOWER_IS_BETTER, *SHARES):
            return cls(task.metric)
        bounds = [bound if math.isfinite(bound) else None for bound in task.bounds]
        return cls(task.metric, {"higher_is_better": task.higher_is_better, "bounds": bounds})

    @property
    def facts(self) -> dict[str, Any]:
        """Return what rows and summaries record, so that a page can be made again where the task is not known."""
        return {"metric": self.name, **({JUDGED: dict(self.judged)} if self.judged else {})}

    @property
    def label(self) -> str:
        """Return the name as people write it."""
        return self.name.replace("_", " ")

    @property
    def lower_is_better(self) -> bool:
        """Return whether a smaller value is better."""
        return not self.judged.get("higher_is_better", self.name not in LOWER_IS_BETTER)

    def better(self, a: float, b: float) -> bool:
        """Return whether `a` is better than `b`."""
        return a < b if self.lower_is_better else a > b

    def gain(self, a: float, b: float) -> float:
        """Return by how much `a` is better than `b`; negative if it is worse."""
        return b - a if self.lower_is_better else a - b

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Return the smallest and the largest possible value; None where there is none."""
        lowest, highest = self.judged.get("bounds", (0.0, 1.0 if self.name in SHARES else None))
        return lowest, highest

    @property
    def form(self) -> str:
        """Return the format specification of means and their intervals."""
        return ".3f" if self.name in SHARES else ".4g"

    def text(self, value: float) -> str:
        """Return a value as text: `0.742`, `12.31`."""
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        """Return (round, value) of every round in which the metric was measured."""
        return [(row["round"], row[self.name]) for row in rows if row.get(self.name) is not None]


def own_values(summary: Mapping[str, Any], metric: Metric, beside: Collection[str] = ()) -> dict[str, str]:
    """Return the keys of a summary that have the mean and the worst tenth of clients' own values, and what each is.

    Args:
        beside: what `own_data` of the summary has, which is left out.
    """
    keys = [key for key in _OWN_VALUES if _IN_OWN_DATA.get(key) not in beside]
    found = {f"{key}_{metric.name}": _OWN_VALUES[key] for key in keys if f"{key}_{metric.name}" in summary}
    return {
        key: REWEIGHTED if text == OWN_ROWS and are_reweighted(summary, metric) else text for key, text in found.items()
    }


def are_reweighted(summary: Mapping[str, Any], metric: Metric) -> bool:
    """Return whether the clients' own values in a summary are of test rows that were reweighted to each client's
    labels.
    """
    old = summary.get("schema_version", _ALWAYS_REWEIGHTED + 1) <= _ALWAYS_REWEIGHTED
    return old or f"client_{metric.name}" not in summary


def own_mean(summary: Mapping[str, Any], metric: Metric, model: str = "") -> Mapping[str, Any] | None:
    """Return the mean and the worst tenth of clients' own values; None where they are not known.

    Args:
        model: "" for the global model, `personal` or `local_only` for another.
    """
    own = {"": "client", "local_only": "local_only_client"}.get(model, model)
    reweighted = f"reweighted_{model}" if model else "reweighted"
    return summary.get(f"{own}_{metric.name}") or summary.get(f"{reweighted}_{metric.name}")


def values_of_clients(summary: Mapping[str, Any], metric: Metric) -> list[float | None]:
    """Return the value of each client that a summary lists; empty where it lists none."""
    listed = summary.get("clients", {})
    return listed.get(metric.name) or listed.get(f"reweighted_{metric.name}") or []


def answers_of_clients(summary: Mapping[str, Any], metric: Metric) -> list[float | None]:
    """Return the value of each client with the answers that it gets: its personal ones, or else those of the common
    model; empty where a summary lists none.
    """
    return personal_values(summary) or values_of_clients(summary, metric)


def personal_values(summary: Mapping[str, Any]) -> list[float | None]:
    """Return the value of each client with its personal answers; empty where a summary lists none."""
    return summary.get("clients", {}).get("personal") or []


def client_names(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of the clients whose values a summary lists: those of the data, or else their numbers."""
    listed = summary.get("clients", {})
    return listed.get("name") or [str(number) for number in range(len(listed.get("tier", ())))]
