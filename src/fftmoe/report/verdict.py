"""Whether a run's result is better than its own start: `verdict` of a summary, and the sentence that says it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fftmoe.report.metric import Metric


class Measured(NamedTuple):
    """A metric, and half the width of its interval."""

    value: float
    half_width: float


def _measured(values: Mapping[str, Any], name: str) -> Measured | None:
    """The metric of a row or a summary; None where it has none, or no interval."""
    value, interval = values.get(name), values.get(f"{name}_interval")
    if value is None or interval is None or not all(map(math.isfinite, (value, *interval))):
        return None
    low, high = interval
    return Measured(value, (high - low) / 2)


def verdict(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the metric after the last round with the metric before the first.

    Two values differ by more than chance if their difference exceeds the `margin`: the root of the sum of the squares
    of the half widths of their 95 % bootstrap intervals. That margin is cautious, because both values are measured on
    the same test rows, or on a part of them.

    Args:
        rows: of `metrics.jsonl`; the first one is of round 0.
        summary: with the metric and its interval.

    Returns:
        `{"verdict": {"result", "start", "end", "gain", "margin"}}`, where the result is `better`, `worse` or `level`
        and a positive gain is an improvement; empty where the start or the end was not measured.
    """
    metric = Metric.of(summary)
    start, end = _measured(rows[0] if rows else {}, metric.name), _measured(summary, metric.name)
    if start is None or end is None:
        return {}
    gain, margin = metric.gain(end.value, start.value), math.hypot(end.half_width, start.half_width)
    result = "level" if abs(gain) <= margin else "better" if gain > 0 else "worse"
    return {"verdict": {"result": result, "start": start.value, "end": end.value, "gain": gain, "margin": margin}}


def _kept(summary: Mapping[str, Any]) -> str:
    """The round whose model a run keeps, in words."""
    return "the last round" if "last" not in summary else f"round {summary['best_round']}, which was the best"


def sentence(summary: Mapping[str, Any]) -> str | None:
    """The verdict of a summary as one sentence; None if it has none."""
    found, metric = summary.get("verdict"), Metric.of(summary)
    if not found:
        return None
    start, end, margin = (metric.text(found[key]) for key in ("start", "end", "margin"))
    values = f"{metric.label} {end} after {_kept(summary)}, {start} before the first"
    if found["result"] == "worse":
        return (
            f"training made the model worse: {values}, and chance explains only {margin}; start a new run with a lower "
            "federation.learning_rate or head.learning_rate"
        )
    if found["result"] == "level":
        return f"training changed little: {values}, and chance alone explains {margin}"
    return f"training made the model better: {values}"
