"""Decides whether a run's result is better than its own start: `verdict` of a summary,
and the sentence that says it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fftmoe.report.chance import chance_margin
from fftmoe.report.metric import SHARES, Metric

FAR_ABOVE = 10.0  # times the loss of the first round; a loss that only fluctuates stays within twice
SMALL_LOSS = 0.1  # a first loss below counts as this, because from almost nothing every loss is far
LARGE_LOSS = 100.0  # a first loss above counts as this, because no guess of labels costs as much: it grew at once
LOWER_RATE = "start a new run with a lower federation.learning_rate or head.learning_rate"


class Measured(NamedTuple):
    """Holds a metric, and its 95 % interval."""

    value: float
    interval: Sequence[float]


def _measured(values: Mapping[str, Any], name: str) -> Measured | None:
    """Return the metric of a row or a summary; None where it has none, or no interval."""
    value, interval = values.get(name), values.get(f"{name}_interval")
    if value is None or interval is None or any(each is None or not math.isfinite(each) for each in (value, *interval)):
        return None
    return Measured(value, interval)


class LossesOfRun(NamedTuple):
    """Holds the training loss of the first round, and that of the round whose model is kept,
    or of the last one if that is the model before the first round.
    """

    first: float
    last: float

    def have_diverged(self, metric: Metric, result: str | None) -> bool:
        """Return whether the last one is not finite, or far above the start.

        Metrics that are no share of right answers follow the loss, and a loss of numbers may be of any size as long as
        they get better.

        Args:
            result: of the metric; None where it was not compared.
        """
        largest = LARGE_LOSS if metric.name in SHARES or result == "level" else math.inf
        return not self.last <= FAR_ABOVE * min(max(self.first, SMALL_LOSS), largest)


def _losses(rows: Sequence[Mapping[str, Any]], kept: float) -> LossesOfRun | None:
    """Return the training losses of a run up to the round `kept`, or of all rounds; None where no round records one."""
    measured_rows = [row for row in rows if row.get("train_loss") is not None]
    until = [row for row in measured_rows if row.get("round", 0) <= kept] or measured_rows
    trained = [row["train_loss"] for row in until if row["train_loss"] != 0.0]  # it is 0 where no client has trained
    return LossesOfRun(trained[0], trained[-1]) if trained else None


def verdict(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the metric after the last round with the metric before the first, and the training losses.

    Two values differ by more than chance if their difference exceeds the `margin` (`chance_margin`). It is cautious,
    because both values are measured on the same test rows, or on a part of them. Training has diverged if its loss ends
    above `FAR_ABOVE` times the first one, or is not finite: the accuracy may not show it, because it counts only which
    label is the most probable.

    Args:
        rows: of `metrics.jsonl`; the first one is of round 0.
        summary: with the metric and its interval.

    Returns:
        `{"verdict": {"result", "start", "end", "gain", "margin"}}`, where the result is `worse`, `diverged`, `better`
        or `level`, the first that is true, and a positive gain is an improvement. With `diverged` come `first_loss` and
        `last_loss`, which is None if it is not finite. Without the metric's part where the start or the end was not
        measured.
    """
    compared = _compared(rows, summary)
    losses = _losses(rows, math.inf if summary.get("best_round") is None else summary["best_round"])
    is_worse = compared.get("result") == "worse"  # which says more
    if is_worse or losses is None or not losses.have_diverged(Metric.of(summary), compared.get("result")):
        return {"verdict": compared} if compared else {}
    last = losses.last if math.isfinite(losses.last) else None
    return {"verdict": {**compared, "result": "diverged", "first_loss": losses.first, "last_loss": last}}


def _compared(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict on the metric alone; empty where the start or the end was not measured."""
    metric = Metric.of(summary)
    start, end = _measured(rows[0] if rows else {}, metric.name), _measured(summary, metric.name)
    if start is None or end is None:
        return {}
    gain, margin = metric.gain(end.value, start.value), chance_margin(*end, *start)
    result = "level" if abs(gain) <= margin else "better" if gain > 0 else "worse"
    return {"result": result, "start": start.value, "end": end.value, "gain": gain, "margin": margin}


def ended_badly(summary: Mapping[str, Any]) -> bool:
    """Return whether a run ended worse than it began, or diverged."""
    return summary.get("verdict", {}).get("result") in ("worse", "diverged")


def _kept(summary: Mapping[str, Any]) -> str:
    """Return the round whose model a run keeps, in words."""
    if "last" not in summary:
        return "the last round"
    return f"round {summary['best_round']}, chosen by the validation rows"


def sentence(summary: Mapping[str, Any]) -> str | None:
    """Return the verdict of a summary as one sentence; None if it has none."""
    found = summary.get("verdict")
    if not found:
        return None
    if found["result"] == "diverged":
        last = "not finite" if found["last_loss"] is None else f"{found['last_loss']:.4g}"
        values = f"; {_values_shown(summary)}" if "start" in found else ""
        first = f"{found['first_loss']:.4g} in the first round"
        return f"training diverged: its loss is {last}, {first}{values}; {LOWER_RATE}"
    values, margin = _values_shown(summary), Metric.of(summary).text(found["margin"])
    if found["result"] == "worse":
        return f"training made the model worse: {values}, and chance explains only {margin}; {LOWER_RATE}"
    if found["result"] == "level":
        return f"training made no clear difference: {values}, and chance alone explains {margin}"
    return f"training made the model better: {values}"


def _values_shown(summary: Mapping[str, Any]) -> str:
    """Return the metric before and after training."""
    found, metric = summary["verdict"], Metric.of(summary)
    end, start = metric.text(found["end"]), metric.text(found["start"])
    return f"{metric.label} {end} after {_kept(summary)}, {start} before the first"
