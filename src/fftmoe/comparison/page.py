"""Makes `comparison.html`: the tables and curves of a comparison in one file that needs no network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fftmoe.comparison.statistics import (
    REFERENCE,
    CellResult,
    Comparison,
    CurvePoint,
    PairedDifference,
    curve,
    each_once,
    metric_of,
    numbers,
    over_grid,
    paired_differences,
    select,
    variant_head,
)
from fftmoe.comparison.tables import ended_worse, failures, tables, with_interval
from fftmoe.data.partition import IID
from fftmoe.report.draw import Level, Line, line_figure
from fftmoe.report.marks import DASHES, Figure
from fftmoe.report.metric import Metric
from fftmoe.report.render import Page, render_page
from fftmoe.shown import count_of

DIFFERENCES_SHOWN = 4  # at the top of the page; its table lists all
WARNED_CELLS = 20  # at the top of the page; comparison.json has the verdict of every cell
ROUNDS, BYTES = "round", "MiB up and down"  # the horizontal axes


def comparison_page(comparison: Comparison) -> Page:
    """Return the page, which needs no network and no script, and the numbers of its figures."""
    cells = comparison.cells
    partitions = each_once(cell.partition for cell in cells if cell.rows)
    parts = dict(
        title=f"{comparison.name}, compared",
        sentence=_what_was_compared(cells),
        warnings=[*_missing(cells), *_first_of(ended_worse(comparison))],
        outcome=_comparison_cards(cells),
        tables=tables(comparison),
        metric=metric_of(cells).label.capitalize(),
        curves=[(partition, _curves(cells, partition)) for partition in partitions],
        failures=failures(comparison),
    )
    return render_page("comparison.html.j2", parts)


def _what_was_compared(cells: Sequence[CellResult]) -> str:
    counts = {what: len({getattr(cell, what) for cell in cells}) for what in ("variant", "partition", "seed")}
    parts = [count_of(count, what) for what, count in counts.items()]
    return f"{', '.join(parts)}: {count_of(len(cells), 'run')} on equal data, cohorts and seeds."


def _missing(cells: Sequence[CellResult]) -> list[str]:
    counts = {status: sum(cell.status == status for cell in cells) for status in ("failed", "not run")}
    return [
        f"{count} of {count_of(len(cells), 'run')} {'failed' if status == 'failed' else 'have not been run'}."
        for status, count in counts.items()
        if count
    ]


def _first_of(lines: Sequence[str]) -> list[str]:
    """Return the first lines as sentences, and how many more there are."""
    more = [f"The end was worse than the beginning in {count_of(len(lines) - WARNED_CELLS, 'more run')}."]
    return [*(f"{line}." for line in lines[:WARNED_CELLS]), *more[: len(lines) > WARNED_CELLS]]


def _comparison_cards(cells: Sequence[CellResult]) -> list[tuple[str, str]]:
    """Return (value, what it is): the best variant, then the reference compared with the others,
    the largest gain first.
    """
    metric = metric_of(cells)
    means = {variant: over_grid(cells, variant, metric.name) for variant in each_once(cell.variant for cell in cells)}
    complete = {variant: mean for variant, mean in means.items() if mean is not None}
    where = "mean over partitions and seeds" if len({cell.place for cell in cells}) > 1 else "mean over seeds"
    most = "lowest" if metric.lower_is_better else "highest"
    ranked = sorted(complete, key=lambda variant: metric.gain(0.0, complete[variant].mean))
    shown = [
        (with_interval(complete[best], metric.form), f"{best}: {most} {metric.label}, {where}") for best in ranked[:1]
    ]
    found = sorted(paired_differences(cells), key=lambda difference: -metric.gain(difference.estimate.mean, 0.0))
    return shown + [_difference_card(difference, metric) for difference in found[:DIFFERENCES_SHOWN]]


def _difference_card(found: PairedDifference, metric: Metric) -> tuple[str, str]:
    text = (
        f"{found.reference} compared with {found.other}: better in {found.wins} of {count_of(found.estimate.n, 'pair')}"
    )
    return with_interval(found.estimate, f"+{metric.form}"), text


def _curves(cells: Sequence[CellResult], partition: str) -> list[Figure]:
    """Return the metric by rounds and by bytes; empty if no variant has a curve."""
    metric = metric_of(cells)
    floor, ceiling = metric.bounds
    levels = _iid_level(cells, partition)
    drawn = [
        line_figure(
            f"{metric.label.capitalize()} by {across}",
            _curve_lines(cells, partition, across),
            across=across,
            levels=levels,
            floor=floor,
            ceiling=ceiling,
        )
        for across in (ROUNDS, BYTES)
    ]
    return [_of_partition(figure, partition) for figure in drawn if figure is not None]


def _of_partition(figure: Figure, partition: str) -> Figure:
    """Return the figure with numbers that say which partition they are of; on the page a heading does."""
    assert figure.numbers is not None, "lines have numbers"
    return replace(figure, numbers=replace(figure.numbers, title=f"{figure.title}, {partition}"))


def _limits(metric: Metric) -> tuple[float, float]:
    """Return the smallest and the largest possible value of a metric."""
    lowest, highest = metric.bounds
    return -math.inf if lowest is None else lowest, math.inf if highest is None else highest


def _curve_lines(cells: Sequence[CellResult], partition: str, across: str) -> list[Line]:
    """Return a line for each variant: a colour for each method, a dash for each head, and its interval as a band."""
    variants, heads = each_once(cell.variant for cell in cells), each_once(cell.head for cell in cells)
    colours = _colours(cells, variants)
    lowest, highest = _limits(metric_of(cells))
    by_variant: Mapping[str, list[CurvePoint]] = {
        v: points
        for v in variants
        if (points := [p for p in curve(cells, v, partition) if not math.isnan(_position(p, across))])
    }
    return [
        Line(
            variant,
            [(_position(p, across), p.value) for p in points],
            colours[variant],
            heads.index(variant_head(cells, variant)) % len(DASHES),
            [
                (_position(p, across), max(lowest, p.value - width), min(highest, p.value + width))
                for p in points
                if (width := p.half_width) is not None
            ],
        )
        for variant, points in by_variant.items()
    ]


def _position(point: CurvePoint, across: str) -> float:
    return point.round if across == ROUNDS else point.bytes / 2**20


def _iid_level(cells: Sequence[CellResult], partition: str) -> list[Level]:
    """Return what the first reference variant reaches on IID data, to compare with; empty on IID data itself."""
    reference = next((cell.variant for cell in cells if cell.method == REFERENCE), None)
    if partition == IID or reference is None:
        return []
    final = numbers(select(cells, reference, IID), metric_of(cells).name)
    return [Level(f"{reference} on IID data", sum(final) / len(final), 7, 2)] if final else []


def _colours(cells: Sequence[CellResult], variants: Sequence[str]) -> dict[str, int]:
    """Return a colour for each method; if two variants have the same method and head, a colour for each variant."""
    method_of = {cell.variant: (cell.method, cell.head) for cell in cells}
    plain = len(set(method_of.values())) == len(variants)
    keys = {variant: method_of[variant][0] if plain else variant for variant in variants}
    order = each_once(keys.values())
    return {variant: order.index(key) for variant, key in keys.items()}
