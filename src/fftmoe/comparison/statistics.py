"""Computes the statistics of a comparison: finished cells in, numbers out.

A cell is one run at (variant, partition, seed). All cells are judged by the same metric, that of their task. Cells that
failed or were not run are left out. A mean over several partitions uses only the seeds whose cells all finished, so
that no variant gains by failing on a hard partition.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fftmoe.data.partition import IID
from fftmoe.report.metric import Metric

# The method whose differences to the others are shown, and the method whose final value is the target.
REFERENCE, BASELINE = "fft-moe", "fedit"

# 97.5 % quantiles of Student's t with 1 … 10 degrees of freedom (scipy is not a dependency).
_T_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

Place = tuple[str, str]  # (data, partition)


@dataclass(frozen=True)
class CellResult:
    """Describes one cell of a comparison.

    Attributes:
        variant: the name of its row in the tables; `method+head` unless the variant has another name.
        summary: the contents of its `summary.json`; empty unless the run finished.
        rows: the lines of its `metrics.jsonl` with a measured metric: round, the metric by its name, and bytes_up,
            bytes_down and client_seconds since the start; runs with differential privacy of clients have no costs.
        reason: why it failed.
        data: the data set, if the comparison has several.
        metric: the name of the metric.
    """

    variant: str
    method: str
    head: str
    partition: str
    seed: int
    status: Literal["done", "failed", "not run"]
    summary: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    reason: str = ""
    data: str = ""
    metric: str = "accuracy"

    @property
    def place(self) -> Place:
        """Return the data set and the partition."""
        return self.data, self.partition


@dataclass(frozen=True)
class Comparison:
    """Holds all cells, and the target value of the metric, if one was given."""

    name: str
    cells: tuple[CellResult, ...]
    target: float | None = None

    @property
    def failed(self) -> tuple[CellResult, ...]:
        """Return the cells whose run failed."""
        return tuple(cell for cell in self.cells if cell.status == "failed")


@dataclass(frozen=True)
class Estimate:
    """Holds a mean of n values with its 95 % interval, mean ± half_width; a single value has no interval."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True)
class CurvePoint:
    """Holds, after a round, the metric (mean, lowest, highest over seeds), mean bytes both ways, mean client seconds so
    far.

    The costs are not a number where a run keeps them to itself. `half_width` is half of the mean's 95 % interval; a
    single seed has none.
    """

    round: int
    value: float
    low: float
    high: float
    bytes: float
    seconds: float
    half_width: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Holds the metric of `reference` minus that of `other`, in pairs;
    `wins` counts the pairs that `reference` wins.
    """

    reference: str
    other: str
    estimate: Estimate
    wins: int


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, to four digits: a table,
    then the Cornish-Fisher expansion (A&S 26.7.5).
    """
    if degrees <= len(_T_QUANTILES):
        return _T_QUANTILES[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean and its 95 % interval by Student's t with n - 1 degrees of freedom; None without values."""
    if not values:
        return None
    n = len(values)
    half_width = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(statistics.fmean(values), half_width, n)


def each_once(values: Iterable[Any]) -> list[Any]:
    """Return each value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def select(cells: Iterable[CellResult], variant: str, partition: str | None = None) -> list[CellResult]:
    """Return the finished cells of a variant, on one partition or on all."""
    return [
        cell
        for cell in cells
        if cell.status == "done" and cell.variant == variant and partition in (None, cell.partition)
    ]


SummaryKey = str | tuple[str, ...]
"""A key of a summary, or several of which a summary has one."""


def number(cell: CellResult, *path: SummaryKey) -> float | None:
    """Return a number of the cell's summary by its path of keys; None if there is none."""
    node: Any = cell.summary
    for key in path:
        names = (key,) if isinstance(key, str) else key
        node = next((node[name] for name in names if name in node), None) if isinstance(node, Mapping) else None
    return None if node is None else float(node)


def numbers(cells: Iterable[CellResult], *path: SummaryKey) -> list[float]:
    """Return the same number of every cell that has it."""
    return [value for cell in cells if (value := number(cell, *path)) is not None]


def own_key(metric: Metric, model: str = "") -> tuple[str, str]:
    """Return the two keys of clients' own values: on their own test rows, and on test rows reweighted to their labels.

    Args:
        model: "" for the global model, `personal` for the clients' own ones.
    """
    reweighted = f"reweighted_{model}" if model else "reweighted"
    return f"{model or 'client'}_{metric.name}", f"{reweighted}_{metric.name}"


def metric_of(cells: Sequence[CellResult]) -> Metric:
    """Return the metric of all cells."""
    finished = (Metric.of(cell.summary) for cell in cells if cell.summary.get("metric"))
    return next(finished, Metric(cells[0].metric if cells else "accuracy"))


def over_grid(cells: Sequence[CellResult], variant: str, *path: SummaryKey) -> Estimate | None:
    """Return the mean over all partitions, estimated from the seeds that finished all of them."""
    return estimate([statistics.fmean(values.values()) for values in _whole_seeds(cells, variant, *path)])


def retained(cells: Sequence[CellResult], variant: str) -> Estimate | None:
    """Return the mean over the skewed partitions divided by the variant's own IID value; the inverse for a metric of
    errors.

    At 1 nothing is lost, and less is worse. It is estimated from the seeds that finished all partitions; None without
    an IID partition or without a skewed one.
    """
    ratios, metric = [], metric_of(cells)
    for values in _whole_seeds(cells, variant, metric.name):
        iid = [value for (_, partition), value in values.items() if partition == IID]
        skewed = [value for (_, partition), value in values.items() if partition != IID]
        if not (iid and skewed):
            continue
        kept, whole = statistics.fmean(skewed), statistics.fmean(iid)
        if metric.lower_is_better:
            kept, whole = whole, kept
        if whole:
            ratios.append(kept / whole)
    return estimate(ratios)


def _whole_seeds(cells: Sequence[CellResult], variant: str, *path: SummaryKey) -> list[dict[Place, float]]:
    """Return for each seed that has the number at every place of the grid: place -> number."""
    places = {cell.place for cell in cells}
    by_seed: dict[int, dict[Place, float]] = {}
    for cell in select(cells, variant):
        if (value := number(cell, *path)) is not None:
            by_seed.setdefault(cell.seed, {})[cell.place] = value
    return [values for values in by_seed.values() if values.keys() == places]


def curve(cells: Sequence[CellResult], variant: str, partition: str) -> list[CurvePoint]:
    """Return the metric and the costs after each round that every finished seed has measured."""
    name = metric_of(cells).name
    runs = [{row["round"]: row for row in cell.rows} for cell in select(cells, variant, partition)]
    if not runs:
        return []
    points = []
    for t in sorted(set.intersection(*(set(run) for run in runs))):
        rows = [run[t] for run in runs]
        values = [row[name] for row in rows]
        found = estimate(values)
        assert found is not None
        points.append(
            CurvePoint(
                t,
                found.mean,
                min(values),
                max(values),
                statistics.fmean(row.get("bytes_up", math.nan) + row.get("bytes_down", math.nan) for row in rows),
                statistics.fmean(row.get("client_seconds", math.nan) for row in rows),
                found.half_width,
            )
        )
    return points


def target_value(comparison: Comparison, variant: str, partition: str) -> float | None:
    """Return the value that this variant has to reach: the given target,
    or else fedit's final mean with the same head.
    """
    if comparison.target is not None:
        return comparison.target
    baseline = first_variant(comparison.cells, BASELINE, variant_head(comparison.cells, variant))
    name = metric_of(comparison.cells).name
    final = numbers(select(comparison.cells, baseline, partition), name) if baseline else []
    return statistics.fmean(final) if final else None


def cost_to_target(points: Sequence[CurvePoint], target: float, metric: Metric) -> CurvePoint | None:
    """Return the first point whose mean reaches the target; None if no point does."""
    return next((point for point in points if not metric.better(target, point.value)), None)


def paired_differences(cells: Sequence[CellResult]) -> list[PairedDifference]:
    """Return fft-moe minus every other variant with the same head, over pairs with equal data, partition and seed.

    A variant with a head that no fft-moe variant has is compared with the first fft-moe variant. Pairs are treated as
    independent.
    """
    variants, metric = each_once(cell.variant for cell in cells), metric_of(cells)
    references = {head: first_variant(cells, REFERENCE, head) for head in each_once(cell.head for cell in cells)}
    anywhere = next((label for label in references.values() if label), None)
    differences = []
    for variant in variants:
        reference = references[variant_head(cells, variant)] or anywhere
        if reference is None or variant in references.values():
            continue
        ours, theirs = (
            {(cell.place, cell.seed): number(cell, metric.name) for cell in select(cells, label)}
            for label in (reference, variant)
        )
        gaps = [a - b for key, b in theirs.items() if (a := ours.get(key)) is not None and b is not None]
        if (found := estimate(gaps)) is not None:
            differences.append(PairedDifference(reference, variant, found, sum(metric.better(gap, 0) for gap in gaps)))
    return differences


def variant_head(cells: Sequence[CellResult], variant: str) -> str:
    """Return the head of a variant."""
    return next(cell.head for cell in cells if cell.variant == variant)


def first_variant(cells: Sequence[CellResult], method: str, head: str) -> str | None:
    """Return the first variant of this method and head."""
    return next((cell.variant for cell in cells if (cell.method, cell.head) == (method, head)), None)
