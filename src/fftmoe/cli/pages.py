"""`fftmoe report`: the page of a run or a comparison again, from what its folder keeps."""

import json
from pathlib import Path
from typing import Any

from fftmoe.comparison.page import comparison_page
from fftmoe.comparison.record import comparison_of
from fftmoe.errors import InputError
from fftmoe.report.page import report_page
from fftmoe.store import read_config, write_atomically


def rebuild_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a run, finished or not, or of a comparison.

    Args:
        folder: of `run` or of `compare`.
        output: the file; by default `report.html` or `comparison.html` in the folder.

    Returns:
        the file that was written.

    Raises:
        InputError: the folder is neither, or is damaged; nothing has been written.
    """
    if (folder / "comparison.json").is_file():
        default, page = folder / "comparison.html", _comparison(folder)
    else:
        default, page = folder / "report.html", _run(folder)
    written = output or default
    if written.is_dir():
        raise InputError(f"--output {written} is a folder; name a file, e.g. {written / default.name}")
    write_atomically(written, page.encode())
    return written


def _run(folder: Path) -> str:
    config = read_config(folder)
    rows, summary = _rows(folder / "metrics.jsonl"), folder / "summary.json"
    try:
        return report_page(config, rows, _json(summary) if summary.is_file() else None)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _comparison(folder: Path) -> str:
    try:
        return comparison_page(comparison_of(_json(folder / "comparison.json")))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder / "comparison.json", f"{type(error).__name__}: {error}") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    """Of whole lines: a run that goes on may be writing one."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"no page can be made of {path}: {reason}; it is damaged, put it back as it was")
