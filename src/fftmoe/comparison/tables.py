"""Makes the tables of a comparison as text, for the page, for Markdown and for the terminal."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from fftmoe.comparison.statistics import (
    BASELINE,
    IID,
    CellResult,
    Comparison,
    CurvePoint,
    Estimate,
    cost_to_target,
    curve,
    each_once,
    estimate,
    metric_of,
    number,
    numbers,
    over_grid,
    own_key,
    paired_differences,
    retained,
    select,
    target_value,
)
from fftmoe.report.metric import NO_VALUE, OWN_ROWS, REWEIGHTED, are_reweighted
from fftmoe.report.progress import size
from fftmoe.report.verdict import ended_badly, sentence


@dataclass(frozen=True)
class TextTable:
    """Holds a table of text with its title, its header, and notes below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables(comparison: Comparison) -> list[TextTable]:
    """Return all tables of a comparison that have a row."""
    every = (
        metric_table(comparison.cells),
        robustness_table(comparison.cells),
        target_table(comparison),
        difference_table(comparison.cells),
    )
    return [table for table in every if table.rows]


def metric_table(cells: Sequence[CellResult]) -> TextTable:
    """Return the metric of each variant on each partition, and its mean over the partitions."""
    partitions, metric = each_once(cell.partition for cell in cells), metric_of(cells)
    rows = []
    for variant in each_once(cell.variant for cell in cells):
        shown = [_mean_text(cells, variant, partition) for partition in partitions]
        mean = [with_interval(over_grid(cells, variant, metric.name), metric.form)] if len(partitions) > 1 else []
        rows.append((variant, *shown, *mean))
    notes = ["± 95 % interval of the mean over seeds (Student t)"]
    if any(cell.status != "done" for cell in cells):
        notes.append(
            "* some seeds failed or were not run; a mean over partitions uses only seeds that finished all of them"
        )
    header = (metric.label, *partitions, *(["mean"] if len(partitions) > 1 else []))
    return TextTable(metric.label.capitalize(), header, tuple(rows), tuple(notes))


def _mean_text(cells: Sequence[CellResult], variant: str, partition: str) -> str:
    here, metric = [cell for cell in cells if (cell.variant, cell.partition) == (variant, partition)], metric_of(cells)
    found = estimate(numbers(select(here, variant), metric.name))
    if found is None:
        return "failed" if any(cell.status == "failed" for cell in here) else NO_VALUE
    return with_interval(found, metric.form) + ("*" if found.n < len(here) else "")


def robustness_table(cells: Sequence[CellResult]) -> TextTable:
    """Return what skew costs, what it costs the worst clients, and what a run sends and computes."""
    metric = metric_of(cells)

    def of_clients(model: str, key: str) -> Callable[[str], str]:
        return lambda variant: with_interval(over_grid(cells, variant, own_key(metric, model), key), metric.form)

    def own_data(way: str, key: str) -> Callable[[str], str]:
        return lambda variant: with_interval(over_grid(cells, variant, "own_data", way, key), metric.form)

    columns: dict[str, Callable[[str], str]] = {}
    notes = []
    if any(cell.partition == IID for cell in cells):
        over, under = "mean over the other partitions", f"own IID {metric.label}"
        parts = (under, over) if metric.lower_is_better else (over, under)
        columns["IID kept"] = lambda variant: with_interval(retained(cells, variant))
        notes.append(f"IID kept: {' / '.join(parts)}")
    columns["worst decile"] = of_clients("", "worst_decile")
    notes.append(f"worst decile: over clients, {_own_rows(cells)}")
    if any(number(cell, "own_data", "personal", "mean") is not None for cell in cells):
        notes.append(
            "own data: the mean over clients on these rows; personal answers: the same with the answers corrected for "
            "each client's own labels, and worst client: of these"
        )
        columns["own data"] = own_data("global", "mean")
        columns["personal answers"], columns["worst client"] = (
            own_data("personal", "mean"),
            own_data("personal", "worst"),
        )
    if any(number(cell, own_key(metric, "personal"), "mean") is not None for cell in cells):
        notes.append(
            "own model: what a client downloads and keeps, on these rows; global there: the global model on them"
        )
        for name, key in (("own model", "mean"), ("own model worst", "worst_decile"), ("global there", "global_mean")):
            columns[name] = of_clients("personal", key)
    columns["up"] = lambda variant: _bytes(numbers(select(cells, variant), "bytes_up"))
    columns["down"] = lambda variant: _bytes(numbers(select(cells, variant), "bytes_down"))
    columns["client s"] = lambda variant: _mean(numbers(select(cells, variant), "client_seconds"))
    notes.append("up, down, client s: per run, mean over runs")
    variants = each_once(cell.variant for cell in cells)
    rows = tuple((variant, *(show(variant) for show in columns.values())) for variant in variants)
    return TextTable("Under skew, and what a run costs", ("", *columns), rows, tuple(notes))


def _own_rows(cells: Sequence[CellResult]) -> str:
    """Return on which test rows clients were measured."""
    done = [cell for cell in cells if cell.status == "done"]
    reweighted = {cell.partition: are_reweighted(cell.summary, metric_of(cells)) for cell in done}
    if len(set(reweighted.values())) < 2:
        return REWEIGHTED if all(reweighted.values()) else OWN_ROWS
    own = ", ".join(partition for partition, other in reweighted.items() if not other)
    return f"{OWN_ROWS} under {own}, and {REWEIGHTED} elsewhere"


def target_table(comparison: Comparison) -> TextTable:
    """Return rounds to the target on every partition, with the mean bytes and seconds over those
    where it was reached.
    """
    cells = comparison.cells
    partitions = each_once(cell.partition for cell in cells)
    rows = []
    for variant in each_once(cell.variant for cell in cells):
        costs = [_cost(comparison, variant, partition) for partition in partitions]
        if any(target_value(comparison, variant, partition) is not None for partition in partitions):
            reached = [cost for cost in costs if cost is not None]
            rounds = [NO_VALUE if cost is None else str(cost.round) for cost in costs]
            means = _bytes([cost.bytes for cost in reached]), _mean([cost.seconds for cost in reached])
            rows.append((variant, *rounds, *means))
    named = (
        f"{comparison.target:g}" if comparison.target is not None else f"{BASELINE}'s final value with the same head"
    )
    notes = (
        f"target {metric_of(cells).label}: {named}; reached by the mean over seeds",
        f"up+down, client s: mean over the partitions where it was reached; {NO_VALUE} where it was not",
    )
    return TextTable("Rounds to the target", ("rounds", *partitions, "up+down", "client s"), tuple(rows), notes)


def _cost(comparison: Comparison, variant: str, partition: str) -> CurvePoint | None:
    target = target_value(comparison, variant, partition)
    points = curve(comparison.cells, variant, partition)
    return None if target is None else cost_to_target(points, target, metric_of(comparison.cells))


def difference_table(cells: Sequence[CellResult]) -> TextTable:
    """Return fft-moe minus each other variant, over all pairs."""
    metric = metric_of(cells)
    rows = tuple(
        (
            f"{found.reference} − {found.other}",
            with_interval(found.estimate, f"+{metric.form}"),
            str(found.estimate.n),
            str(found.wins),
        )
        for found in paired_differences(cells)
    )
    notes = ("± 95 % interval of the mean over pairs with equal data, partition and seed, treated as independent",)
    better = "below 0" if metric.lower_is_better else "above 0"
    return TextTable(f"Paired differences of {metric.label}", ("", "difference", "pairs", better), rows, notes)


def with_interval(value: Estimate | None, form: str = ".3f") -> str:
    """Return a mean with its interval as text, `0.912 ±.004`; `form` formats both, with a sign only on the mean."""
    if value is None:
        return NO_VALUE
    interval = (
        "" if value.half_width is None else " ±" + f"{value.half_width:{form.removeprefix('+')}}".removeprefix("0")
    )
    return f"{value.mean:{form}}{interval}"


def _bytes(values: Sequence[float]) -> str:
    return size(statistics.fmean(values)) if values and not any(map(math.isnan, values)) else NO_VALUE


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.0f}" if values and not any(map(math.isnan, values)) else NO_VALUE


def failures(comparison: Comparison) -> list[str]:
    """Return one line for every reason, with the cells that failed for it."""
    by_reason: dict[str, list[str]] = {}
    for cell in comparison.failed:
        by_reason.setdefault(cell.reason, []).append(f"{cell.variant}, {cell.partition}, seed {cell.seed}")
    return [f"failed: {'; '.join(names)}: {reason}" for reason, names in by_reason.items()]


def ended_worse(comparison: Comparison) -> list[str]:
    """Return one line for every finished cell that ended worse than it began, or diverged,
    with the sentence of its run.
    """
    return [
        f"{cell.variant}, {cell.partition}, seed {cell.seed}: {sentence({**cell.summary, 'metric': cell.metric})}"
        for cell in comparison.cells
        if ended_badly(cell.summary)
    ]


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print which cells ended worse than they began, every table, and why cells failed."""
    for line in ended_worse(comparison):
        console.print(f"warning: {line}", highlight=False, markup=False, soft_wrap=True)
    for table in tables(comparison):
        first, *others = table.header
        columns = [Column(first, no_wrap=True), *(Column(_on_short_lines(head)) for head in others)]
        shown = RichTable(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"\n{table.title}", style="bold", highlight=False)
        console.print(shown)
        for note in table.notes:
            console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)
    for line in failures(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _on_short_lines(partition: str) -> str:
    """Return a partition on short lines: `bernoulli-dirichlet:0.3:0.5` on three."""
    return partition.replace("-", "-\n").replace(":", "\n", 1)
