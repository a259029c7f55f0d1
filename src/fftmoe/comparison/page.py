"""`comparison.html`: the tables and curves of a comparison in one file that needs no network."""

import math
from collections.abc import Sequence

from fftmoe.comparison.statistics import (
    IID,
    REFERENCE,
    CellResult,
    Comparison,
    CurvePoint,
    Difference,
    curve,
    distinct,
    head_of,
    metric_of,
    numbers,
    over_grid,
    paired_differences,
    select,
)
from fftmoe.comparison.tables import Table, failures, tables, with_interval
from fftmoe.report import draw
from fftmoe.report.draw import Level, Line
from fftmoe.report.metric import Metric
from fftmoe.report.page import alarm, cards, figures, heading, page, paragraph, section, subsection, table

BANDS = "Mean over seeds; the band is its 95 % interval (Student t)."


def comparison_page(comparison: Comparison) -> str:
    """The text of the page."""
    cells, title = comparison.cells, f"{comparison.name}, compared"
    curves = "".join(
        subsection(partition, figures(*_curves(cells, partition)))
        for partition in distinct(cell.partition for cell in cells if cell.rows)
    )
    body = (
        heading(title, _what_was_run(cells)),
        alarm(_missing(cells)),
        _outcome(comparison),
        *(section(found.title, *_table(found)) for found in tables(comparison)),
        section(
            f"{metric_of(cells).label.capitalize()} against rounds and bytes",
            paragraph(BANDS if curves else "No cell has finished yet.", note=True),
            curves,
        ),
        section("Failed", *map(paragraph, failures(comparison))),
    )
    return page(title, "".join(body))


def _what_was_run(cells: Sequence[CellResult]) -> str:
    counts = {what: len({getattr(cell, what) for cell in cells}) for what in ("variant", "partition", "seed")}
    parts = [f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items()]
    return f"{', '.join(parts)}: {len(cells)} runs on equal data, cohorts and seeds."


def _missing(cells: Sequence[CellResult]) -> list[str]:
    counts = {status: sum(cell.status == status for cell in cells) for status in ("failed", "not run")}
    return [
        f"{count} of {len(cells)} runs {'failed' if status == 'failed' else 'have not been run'}."
        for status, count in counts.items()
        if count
    ]


def _outcome(comparison: Comparison) -> str:
    """The best variant, and how the reference stands against the others, best of them first."""
    cells, metric = comparison.cells, metric_of(comparison.cells)
    means = {variant: over_grid(cells, variant, metric.name) for variant in distinct(c.variant for c in cells)}
    known = {variant: found for variant, found in means.items() if found is not None}
    where = "mean over partitions and seeds" if len({cell.place for cell in cells}) > 1 else "mean over seeds"
    sign, most = (1, "lowest") if metric.lower_is_better else (-1, "highest")
    ranked = sorted(known, key=lambda variant: sign * known[variant].mean)
    shown = [
        (with_interval(known[best], metric.form), f"{best}: {most} {metric.label}, {where}") for best in ranked[:1]
    ]
    found = sorted(paired_differences(cells), key=lambda difference: -sign * difference.estimate.mean)
    shown += [_against(difference, metric) for difference in found[:4]]
    return cards(shown) if shown else ""


def _against(found: Difference, metric: Metric) -> tuple[str, str]:
    text = f"{found.reference} against {found.other}: better in {found.wins} of {found.estimate.n} pairs"
    return with_interval(found.estimate, f"+{metric.form}"), text


def _table(found: Table) -> list[str]:
    return [table(found.header, found.rows), *(paragraph(note, note=True) for note in found.notes)]


def _curves(cells: Sequence[CellResult], partition: str) -> list[str]:
    """A colour for every method, a dash for every head; against rounds, and against bytes."""
    variants, heads = distinct(cell.variant for cell in cells), distinct(cell.head for cell in cells)
    colours, metric = _colours(cells, variants), metric_of(cells)
    floor, ceiling = metric.bounds
    known = {variant: points for variant in variants if (points := curve(cells, variant, partition))}

    def drawn(across: str) -> list[Line]:
        return [
            Line(
                variant,
                [(_place(p, across), p.value) for p in points],
                colours[variant],
                heads.index(head_of(cells, variant)) % len(draw.DASHES),
                [
                    (_place(p, across), max(floor, p.value - width), min(ceiling or math.inf, p.value + width))
                    for p in points
                    if (width := p.half_width) is not None
                ],
            )
            for variant, points in known.items()
        ]

    levels = _on_iid(cells, partition)
    return [
        draw.lines(
            f"{metric.label.capitalize()} by {across}",
            drawn(across),
            across=across,
            levels=levels,
            floor=floor,
            ceiling=ceiling,
        )
        for across in ("round", "MiB up and down")
    ]


def _place(point: CurvePoint, across: str) -> float:
    return point.round if across == "round" else point.bytes / 2**20


def _on_iid(cells: Sequence[CellResult], partition: str) -> list[Level]:
    """What the first reference variant reaches where the data is not skewed, to compare with."""
    reference = next((cell.variant for cell in cells if cell.method == REFERENCE), None)
    if partition == IID or reference is None:
        return []
    final = numbers(select(cells, reference, IID), metric_of(cells).name)
    return [Level(f"{reference} on IID data", sum(final) / len(final), 7, 2)] if final else []


def _colours(cells: Sequence[CellResult], variants: Sequence[str]) -> dict[str, int]:
    """The methods' colours; variants of one method and head each get their own."""
    method_of = {cell.variant: (cell.method, cell.head) for cell in cells}
    plain = len(set(method_of.values())) == len(variants)
    keys = {variant: method_of[variant][0] if plain else variant for variant in variants}
    order = distinct(keys.values())
    return {variant: order.index(key) for variant, key in keys.items()}
