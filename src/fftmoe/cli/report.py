"""`fftmoe report` writes the page of a run or a comparison again."""

from pathlib import Path
from typing import Annotated

import typer

from fftmoe.report.console import Console


def report(
    run: Annotated[
        Path, typer.Argument(help="The folder of a run, finished or not, or of a comparison.", metavar="RUN")
    ],
    output: Annotated[Path | None, typer.Option(help="The file to write; default: the page in the folder.")] = None,
) -> None:
    """Write the page of a run or a comparison again, from the files in its folder, and its numbers as CSV beside it."""
    from fftmoe.cli.pages import rebuild_report

    written = rebuild_report(run, output)
    Console().print(f"page  {written}", highlight=False, markup=False, soft_wrap=True)
