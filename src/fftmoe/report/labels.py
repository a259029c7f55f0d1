"""Says how well each label is recognised, from the counts in a summary (`fftmoe.tasks.LabelCounts`).

Recall is the share of the rows of a label that get it, precision the share of the rows that get a label that have it,
and F1 their harmonic mean, 2 hits / (actual + predicted). Each is unknown where it would be 0 / 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fftmoe.report.constant import never_given
from fftmoe.report.metric import NO_VALUE
from fftmoe.report.numbers import Numbers, PlottedNumber
from fftmoe.report.record import RunRecord

LABELS_IN_A_TABLE = 20  # in the table; the CSV file has all
MATRIX_SHADES = 8


class LabelQuality(NamedTuple):
    """Describes one label: its rows among the test rows, and the three shares; None where a share is unknown."""

    name: str
    rows: int
    recall: float | None
    precision: float | None
    f1: float | None


class Share(NamedTuple):
    """Describes a cell of a confusion matrix: rows as text, and how dark it is, 0 … `MATRIX_SHADES`."""

    text: str
    shade: int


@dataclass(frozen=True)
class ConfusionView:
    """Holds the confusion matrix as a table: the names of its columns, and a name and the cells of each row."""

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Share]]]
    numbers: Numbers


@dataclass(frozen=True)
class LabelsView:
    """Holds the table of labels, the worst first; `num_more` labels are left out of it. `never` says which labels the
    model never gives.
    """

    header: Sequence[str]
    rows: Sequence[tuple[str, ...]]
    num_more: int
    never: str
    judged: str
    numbers: Numbers
    confusion: ConfusionView | None


def labels(run: RunRecord) -> LabelsView | None:
    """Return how well each label is recognised; None for a run that has not counted labels."""
    counts = run.summary.get("labels")
    if not counts:
        return None
    judged = "tokens" if run.setting("backbone.task") == "token-classification" else "rows"
    found = _worst_first(_qualities(counts))
    shown = [
        (each.name, str(each.rows), *(NO_VALUE if share is None else f"{share:.3f}" for share in each[2:]))
        for each in found[:LABELS_IN_A_TABLE]
    ]
    header = ("label", f"test {judged}", "recall", "precision", "F1")
    more = len(found) - len(shown)
    return LabelsView(
        header, shown, more, never_given(run.summary), judged, _numbers(found, judged), _confusion(counts, judged)
    )


def _qualities(counts: Mapping[str, Any]) -> list[LabelQuality]:
    columns = (counts[key] for key in ("name", "actual", "predicted", "hits"))
    return [
        LabelQuality(name, actual, _share(hits, actual), _share(hits, predicted), _share(2 * hits, actual + predicted))
        for name, actual, predicted, hits in zip(*columns, strict=True)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _worst_first(found: Sequence[LabelQuality]) -> list[LabelQuality]:
    """Sort labels by F1, of equal ones the label with more rows first; labels without test rows last."""
    return sorted(found, key=lambda each: (not each.rows, 0.0 if each.f1 is None else each.f1, -each.rows))


def _numbers(found: Sequence[LabelQuality], judged: str) -> Numbers:
    series = (f"test {judged}", "recall", "precision", "F1")
    return Numbers(
        "Labels",
        "label",
        [PlottedNumber(name, each.name, value) for each in found for name, value in zip(series, each[1:], strict=True)],
    )


def _confusion(counts: Mapping[str, Any], judged: str) -> ConfusionView | None:
    """Return the matrix of a task with few labels; its shades are shares of the rows of a label."""
    matrix, names = counts.get("confusion"), counts["name"]
    if not matrix:
        return None
    rows = []
    for name, row in zip(names, matrix, strict=True):
        whole = sum(row) or 1
        rows.append((name, [Share(str(number), round(MATRIX_SHADES * number / whole)) for number in row]))
    title = f"Confusion matrix, {judged} by label and prediction"
    each = [
        PlottedNumber(actual, predicted, number)
        for actual, row in zip(names, matrix, strict=True)
        for predicted, number in zip(names, row, strict=True)
    ]
    return ConfusionView(names, rows, Numbers(title, "predicted", each))
