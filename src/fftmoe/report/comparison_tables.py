"""The tables of a comparison as text, for the page, for Markdown, and printed on the terminal."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from fftmoe.report.comparison import (
    BASELINE,
    IID,
    CellResult,
    Comparison,
    CurvePoint,
    Estimate,
    cost_to_target,
    curve,
    distinct,
    estimate,
    number,
    numbers,
    over_grid,
    paired_differences,
    retained,
    select,
    target_accuracy,
)
from fftmoe.report.progress import size

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of text, and notes to read under them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables(comparison: Comparison) -> list[Table]:
    """Everything that is printed of a comparison; a table without a row is left out."""
    every = (
        accuracy_table(comparison.cells),
        robustness_table(comparison.cells),
        target_table(comparison),
        difference_table(comparison.cells),
    )
    return [table for table in every if table.rows]


def accuracy_table(cells: Sequence[CellResult]) -> Table:
    """Variants by partitions, and the mean over the partitions."""
    partitions = distinct(cell.partition for cell in cells)
    rows = []
    for variant in distinct(cell.variant for cell in cells):
        shown = [_accuracy(cells, variant, partition) for partition in partitions]
        mean = [with_interval(over_grid(cells, variant, "accuracy"))] if len(partitions) > 1 else []
        rows.append((variant, *shown, *mean))
    notes = ["± 95 % interval of the mean over seeds (Student t)"]
    if any(cell.status != "done" for cell in cells):
        notes.append("* some of its seeds failed or were not run; a mean over partitions takes whole seeds only")
    header = ("accuracy", *partitions, *(["mean"] if len(partitions) > 1 else []))
    return Table("Accuracy", header, tuple(rows), tuple(notes))


def _accuracy(cells: Sequence[CellResult], variant: str, partition: str) -> str:
    here = [cell for cell in cells if (cell.variant, cell.partition) == (variant, partition)]
    found = estimate(numbers(select(here, variant), "accuracy"))
    if found is None:
        return "failed" if any(cell.status == "failed" for cell in here) else NOTHING
    return with_interval(found) + ("*" if found.n < len(here) else "")


def robustness_table(cells: Sequence[CellResult]) -> Table:
    """What skew costs, whom it costs most, and what a run sends and computes."""
    columns = {
        "IID kept": lambda variant: with_interval(retained(cells, variant)),
        "worst decile": lambda variant: with_interval(over_grid(cells, variant, "client_accuracy", "worst_decile")),
    }
    notes = ["worst decile: of clients, each on its own label mix", "up, down, client s: of a run, mean over its cells"]
    if any(cell.partition == IID for cell in cells):
        notes.insert(0, "IID kept: mean accuracy over the other partitions / own IID accuracy")
    else:
        del columns["IID kept"]
    if any(number(cell, "personal_accuracy", "mean") is not None for cell in cells):
        notes.insert(-1, "personal: a client's own model on its own labels; global there: the global one on those rows")
        for name, key in (("personal", "mean"), ("personal worst", "worst_decile"), ("global there", "global_mean")):
            columns[name] = lambda variant, key=key: with_interval(over_grid(cells, variant, "personal_accuracy", key))
    columns["up"] = lambda variant: _bytes(numbers(select(cells, variant), "bytes_up"))
    columns["down"] = lambda variant: _bytes(numbers(select(cells, variant), "bytes_down"))
    columns["client s"] = lambda variant: _mean(numbers(select(cells, variant), "client_seconds"))
    rows = tuple(
        (variant, *(show(variant) for show in columns.values())) for variant in distinct(cell.variant for cell in cells)
    )
    return Table("Under skew, and what a run costs", ("", *columns), rows, tuple(notes))


def target_table(comparison: Comparison) -> Table:
    """Rounds to the target in every partition, with the mean bytes and seconds where it was reached."""
    cells = comparison.cells
    partitions = distinct(cell.partition for cell in cells)
    rows = []
    for variant in distinct(cell.variant for cell in cells):
        costs = [_cost(comparison, variant, partition) for partition in partitions]
        if any(target_accuracy(comparison, variant, partition) is not None for partition in partitions):
            reached = [cost for cost in costs if cost is not None]
            rounds = [NOTHING if cost is None else str(cost.round) for cost in costs]
            means = _bytes([cost.bytes for cost in reached]), _mean([cost.seconds for cost in reached])
            rows.append((variant, *rounds, *means))
    named = f"{comparison.target:g}" if comparison.target is not None else f"{BASELINE}'s final one with the same head"
    notes = (
        f"the accuracy to reach: {named}; by the curve of means over seeds",
        f"up+down, client s: mean over the partitions where it was reached; {NOTHING} where it was not",
    )
    return Table("Rounds to the target", ("rounds", *partitions, "up+down", "client s"), tuple(rows), notes)


def _cost(comparison: Comparison, variant: str, partition: str) -> CurvePoint | None:
    target = target_accuracy(comparison, variant, partition)
    return None if target is None else cost_to_target(curve(comparison.cells, variant, partition), target)


def difference_table(cells: Sequence[CellResult]) -> Table:
    """fft-moe minus the others over all cells."""
    rows = tuple(
        (
            f"{found.reference} − {found.other}",
            with_interval(found.estimate, "+.3f"),
            str(found.estimate.n),
            str(found.wins),
        )
        for found in paired_differences(cells)
    )
    notes = ("± 95 % interval of the mean over pairs of equal data, partition and seed, taken as independent",)
    return Table("Paired differences of accuracy", ("", "difference", "pairs", "above 0"), rows, notes)


def with_interval(value: Estimate | None, form: str = ".3f") -> str:
    """`0.912 ±.004`."""
    if value is None:
        return NOTHING
    interval = "" if value.half_width is None else " ±" + f"{value.half_width:.3f}".removeprefix("0")
    return f"{value.mean:{form}}{interval}"


def _bytes(values: Sequence[float]) -> str:
    return size(statistics.fmean(values)) if values else NOTHING


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.0f}" if values else NOTHING


def failures(comparison: Comparison) -> list[str]:
    """One line for every reason, with the cells that failed by it."""
    by_reason: dict[str, list[str]] = {}
    for cell in comparison.failed:
        by_reason.setdefault(cell.reason, []).append(f"{cell.variant}, {cell.partition}, seed {cell.seed}")
    return [f"failed: {'; '.join(names)}: {reason}" for reason, names in by_reason.items()]


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Every table, and why cells failed."""
    for table in tables(comparison):
        first, *others = table.header
        columns = [Column(first, no_wrap=True), *(Column(_folded(head)) for head in others)]
        shown = RichTable(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for row in table.rows:
            shown.add_row(*row)
        console.print(f"\n{table.title}", style="bold", highlight=False)
        console.print(shown)
        for note in table.notes:
            console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)
    for line in failures(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _folded(partition: str) -> str:
    """`bernoulli-dirichlet:0.3:0.5` on three short lines."""
    return partition.replace("-", "-\n").replace(":", "\n", 1)
