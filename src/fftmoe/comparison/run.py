"""Carries out `fftmoe compare`: runs one recipe over methods, heads, partitions and seeds;
a stopped comparison can continue.
"""

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from fftmoe.comparison.bound import CurrentInputs, bind_folder, check_equal_inputs
from fftmoe.comparison.page import comparison_page
from fftmoe.comparison.record import comparison_values
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.comparison.workers import Execute, run_jobs
from fftmoe.errors import InputError
from fftmoe.report.progress import Progress
from fftmoe.report.render import csv_beside
from fftmoe.setup.cells import Cell, Grid, Variant, first_difference, make_grid
from fftmoe.setup.choices import Flags
from fftmoe.setup.plugins import Plugins, check_named
from fftmoe.setup.run import run
from fftmoe.shown import count_of
from fftmoe.store import RunFolder, check_output, disk_errors, owned, read_summary, write_atomically
from fftmoe.store.bindings import BINDINGS_FILE as BINDINGS
from fftmoe.store.files import make_folder
from fftmoe.store.owner import LOCK
from fftmoe.strict import json_text, yaml_text

ROW_KEYS = ("round", "bytes_up", "bytes_down", "client_seconds")  # and the metric
LEFT_AT_CELLS = ("labels",)  # of a summary: what neither statistics nor the page of a comparison shows
# Folders of a finished cell that the comparison does not need.
BULKY = ("checkpoints", "clients", "adapter", "adapter-last", "trackers")


def compare(
    recipe: str | Path | Mapping[str, Any],
    output: Path,
    *,
    variants: Sequence[Variant] | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int | Literal["auto"] = 1,
    keep: bool = False,
    deadline: float | None = None,
    progress: Progress | None = None,
    accept_changes: bool = False,
    plugins: Plugins | None = None,
    **flags: Unpack[Flags],
) -> Comparison:
    """Run every cell that has not finished yet, and write `comparison.json` and `comparison.html`.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or the recipe's values.
        output: the comparison's folder; finished cells in it are kept.
        variants: what to compare, instead of methods and heads; the section's overrides are not applied to variants.
        overrides: values by dotted keys for every cell; they have precedence over all others.
        workers: the number of processes, each of which runs one cell at a time; `auto` is one per core.
        keep: keep checkpoints, client states and adapters in the cells' folders.
        deadline: a time of `time.monotonic`; no cell starts after it.
        progress: shows the progress; None shows nothing.
        accept_changes: keep finished cells of other versions of the software.
        plugins: parts that recipes may name, in addition to installed ones; picklable where there are several workers.
        flags: methods, heads, partitions, seeds and the target, see `Flags`.

    Raises:
        InputError: the recipe of a cell or the output folder is wrong, the folder belongs to another comparison or
            another process, or a finished cell was made of other data or another backbone; no cell has been run. A
            cell that fails later raises no error: the result lists it in `failed`.
    """
    progress = progress or Progress.silent()
    grid, plugins = make_grid(recipe, flags, variants, overrides), plugins or Plugins()
    for cell in grid.cells:
        check_named(cell.recipe, plugins)
    _check_output_folder(output)
    with owned(output):
        inputs = CurrentInputs(accept_changes, plugins)
        pending = [cell for cell in grid.cells if not is_finished(cell, output, inputs)]
        bind_folder(grid, output)
        _make_folder(output)
        _say_what_comes(grid, len(pending), progress)
        execute = partial(run_cell, keep=keep, plugins=plugins)
        _run_cells(pending, output, _num_workers(workers, len(pending)), execute, deadline, progress)
        return _write_comparison(grid, output)


def _write_comparison(grid: Grid, output: Path) -> Comparison:
    """Write what the finished cells say."""
    check_equal_inputs([(cell, cell_folder(cell, output)) for cell in grid.cells])
    comparison = Comparison(grid.name, tuple(read_cell(cell, output) for cell in grid.cells), grid.target)
    text = json_text(comparison_values(comparison), indent=1)
    write_atomically(output / "comparison.json", text.encode() + b"\n")
    page, written = comparison_page(comparison), output / "comparison.html"
    write_atomically(csv_beside(written), page.csv.encode())
    write_atomically(written, page.html.encode())
    return comparison


def _check_output_folder(output: Path) -> None:
    begun = output.is_dir() and {path.name for path in output.iterdir()} <= {LOCK, BINDINGS}  # and was killed
    if not begun and not (output / "cells").is_dir():
        check_output(output)  # the folder of an earlier comparison has `cells`


def _make_folder(output: Path) -> None:
    with disk_errors(output):
        make_folder(output / "cells")


def _num_workers(workers: int | Literal["auto"], num_cells: int) -> int:
    wanted = (os.cpu_count() or 1) if workers == "auto" else workers
    return max(1, min(wanted, num_cells))


def cell_folder(cell: Cell, output: Path) -> Path:
    """Return the folder of a cell's run inside the comparison's folder."""
    return output / "cells" / cell.path


def is_finished(cell: Cell, output: Path, inputs: CurrentInputs | None = None) -> bool:
    """Return whether the cell has finished: its summary, which is written last, exists.

    Args:
        inputs: what cells would read now; None does not compare it.

    Raises:
        InputError: the cell was run with another recipe, other data, another backbone or another version.
    """
    folder = cell_folder(cell, output)
    if not (folder / "summary.json").is_file():
        return False
    another = f"; name another folder with --output, or remove {folder}"
    try:
        read_summary(folder)  # a damaged one must not be found after hours
        difference = first_difference(cell, folder / "config.yaml")
    except (OSError, ValueError) as error:
        raise InputError(f"{' '.join(str(error).split())}{another}") from None
    if difference is not None:
        key, before, now = difference
        raise InputError(
            f"the finished cell {cell.name!r} was run with {key}={before!r}; this comparison has {now!r}{another}"
        )
    if inputs is not None:
        inputs.check(cell, folder)
    return True


def _say_what_comes(grid: Grid, num_pending: int, progress: Progress) -> None:
    counts = {what: len({getattr(cell, what) for cell in grid.cells}) for what in ("variant", "partition", "seed")}
    parts = [count_of(count, what) for what, count in counts.items()]
    once = "; centralized on one partition" * (len(grid.cells) < math.prod(counts.values()))
    done = len(grid.cells) - num_pending
    finished = f", {done} of them finished already" * bool(done)
    for note in dict.fromkeys(note for cell in grid.cells for note in cell.fitted):
        progress.say(note)
    progress.say(f"{count_of(len(grid.cells), 'cell')} ({' × '.join(parts)}{once}){finished}")


def _run_cells(
    cells: Sequence[Cell], output: Path, workers: int, execute: Execute, deadline: float | None, progress: Progress
) -> None:
    """Run all cells. A cell that fails leaves `failed.txt` in its folder; the other cells still run."""
    started = time.monotonic()
    jobs = [(cell, cell_folder(cell, output)) for cell in cells]
    with closing(run_jobs(jobs, execute, workers, deadline)) as ends:
        for count, (index, reason) in enumerate(ends, 1):
            cell, (_, folder) = cells[index], jobs[index]
            if reason is not None:
                with disk_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / "failed.txt", reason.encode() + b"\n")
                outcome = f"failed: {_first_line(reason)}"
            else:
                metric = cell.metric
                outcome = f"{metric.label} {metric.text(read_cell(cell, output).summary[metric.name])}"
            minutes = (time.monotonic() - started) / 60
            progress.say(f"[{count}/{len(cells)}, {minutes:.1f} min] {cell.name}: {outcome}")


def run_cell(cell: Cell, folder: Path, keep: bool = False, plugins: Plugins | None = None) -> None:
    """Run a cell into its folder, after removing the files of an earlier attempt."""
    shutil.rmtree(folder, ignore_errors=True)
    run(cell.recipe, folder, plugins=plugins)
    if not keep:
        for name in BULKY:
            shutil.rmtree(folder / name, ignore_errors=True)


def read_cell(cell: Cell, output: Path) -> CellResult:
    """Read the result of a cell from its folder: its numbers, the reason of a failure, or that it has not run."""
    folder = cell_folder(cell, output)
    metric = cell.metric.name
    place = (cell.variant, cell.method, cell.head, cell.partition, cell.seed)
    if (folder / "summary.json").is_file():
        summary = {key: value for key, value in read_summary(folder).items() if key not in LEFT_AT_CELLS}
        rows = RunFolder(folder).all_metrics()
        kept = (*ROW_KEYS, metric)
        measured = [{key: row[key] for key in kept if key in row} for row in rows if row.get(metric) is not None]
        return CellResult(*place, "done", summary, measured, metric=metric)
    if (folder / "failed.txt").is_file():
        return CellResult(*place, "failed", reason=_first_line((folder / "failed.txt").read_text()), metric=metric)
    return CellResult(*place, "not run", metric=metric)


def write_cell(cell: Cell, output: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the files of a finished cell from its numbers; `compare` then does not run the cell.

    Args:
        summary: the values of `summary.json`; the metric must be among them.
        rows: the rows of `metrics.jsonl`, each with `ROW_KEYS` and the metric.
    """
    _check_output_folder(output)
    _make_folder(output)
    folder = cell_folder(cell, output)
    with disk_errors(folder):
        (folder / "summary.json").unlink(missing_ok=True)  # first: it marks a finished run
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
    config = yaml_text(cell.config)
    write_atomically(folder / "config.yaml", config.encode())
    write_atomically(folder / "metrics.jsonl", "".join(json_text(row) + "\n" for row in rows).encode())
    text = json_text(summary, indent=2)
    write_atomically(folder / "summary.json", text.encode() + b"\n")  # written last, because it marks a finished run


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
