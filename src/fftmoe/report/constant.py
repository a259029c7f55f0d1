"""Compares a result with the answer that needs no model: always the commonest label. It also says which
labels the model never gives, which an accuracy hides where they are rare.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fftmoe.report.metric import Metric
from fftmoe.shown import count_of

LABELS_NAMED = 5  # labels that a sentence names
OF_ONE_LABEL = "accuracy"  # the metric of tasks in which a row, or a token, has one label


class Constant(NamedTuple):
    """Holds the commonest label of the test rows, and the share of them that it has: the accuracy of this answer."""

    label: str
    share: float


def commonest(summary: Mapping[str, Any]) -> Constant | None:
    """Return the answer that is right most often without a model; None where labels were not counted,
    or a row may have several.
    """
    counts = summary.get("labels")
    if not counts or Metric.of(summary).name != OF_ONE_LABEL or not sum(counts["actual"]):
        return None
    most = max(counts["actual"])
    return Constant(counts["name"][counts["actual"].index(most)], most / sum(counts["actual"]))


def never_given(summary: Mapping[str, Any]) -> str:
    """Return which labels of the test rows the model gives to none of them, in words; empty if there are none."""
    counts = summary.get("labels") or {"name": (), "actual": (), "predicted": ()}
    columns = (counts[key] for key in ("name", "actual", "predicted"))
    found = [(name, rows) for name, rows, given in zip(*columns, strict=True) if rows and not given]
    if not found:
        return ""
    present, verb = sum(rows > 0 for rows in counts["actual"]), "is" if len(found) == 1 else "are"
    return f"{len(found)} of {count_of(present, 'label')} in the test rows {verb} never given: {_named(found)}"


def _named(found: Sequence[tuple[str, int]]) -> str:
    """Return the labels with most test rows, with the numbers of these."""
    ordered = sorted(found, key=lambda each: -each[1])
    named = ", ".join(f"{name!r} ({rows:,})" for name, rows in ordered[:LABELS_NAMED])
    return named + (f" and {len(found) - LABELS_NAMED:,} more" if len(found) > LABELS_NAMED else "")
