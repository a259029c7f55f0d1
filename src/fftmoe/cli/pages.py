"""Rebuilds the page of a run or a comparison from the files in its folder."""

from pathlib import Path
from typing import Any

from fftmoe.comparison.page import comparison_page
from fftmoe.comparison.record import comparison_of
from fftmoe.errors import InputError
from fftmoe.report.page import report_page
from fftmoe.report.record import RunRecord
from fftmoe.report.render import Page, csv_beside
from fftmoe.store import RunFolder, read_config, write_atomically
from fftmoe.strict import MOST_RESULTS, read_small, strict_json


def rebuild_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run, finished or not, or of a comparison, and the numbers of its figures beside it.

    Args:
        folder: that `fftmoe run` or `fftmoe compare` wrote.
        output: the file to write; by default `report.html` or `comparison.html` in the folder.

    Returns:
        The file that was written.

    Raises:
        InputError: the folder is of neither, or is damaged; nothing has been written.
    """
    page = page_of(folder)
    default = folder / ("comparison.html" if _is_comparison(folder) else "report.html")
    written = output or default
    if written.is_dir():
        raise InputError(f"--output {written} is a folder; name a file, e.g. {written / default.name}")
    write_atomically(csv_beside(written), page.csv.encode(), private=output is None)
    write_atomically(written, page.html.encode(), private=output is None)
    return written


def page_of(folder: Path) -> Page:
    """Return the page of a run, finished or not, or of a comparison.

    Raises:
        InputError: as `rebuild_report`.
    """
    return _comparison_page(folder) if _is_comparison(folder) else _run_page(folder)


def _is_comparison(folder: Path) -> bool:
    return (folder / "comparison.json").is_file()


def _run_page(folder: Path) -> Page:
    config, rows = read_config(folder), RunFolder(folder).all_metrics()
    summary = _read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    try:
        return report_page(RunRecord(config, rows, summary, str(folder), RunFolder(folder).over_sites))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _comparison_page(folder: Path) -> Page:
    record = _read_json(folder / "comparison.json")
    try:
        return comparison_page(comparison_of(record))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder / "comparison.json", f"{type(error).__name__}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return strict_json(read_small(path, MOST_RESULTS))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"cannot make a page from {path}: {reason}; it is damaged, restore it")
