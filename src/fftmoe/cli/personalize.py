"""Defines `fftmoe personalize`, which finds how often labels occur at a place that was in no round."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.cli.arguments import AcceptUseOption, EncodingOption, RoundOption, RunArgument
from fftmoe.shown import count_of, quoted, shown
from fftmoe.strict import json_text


def personalize(
    run: RunArgument,
    data: Annotated[str, typer.Option(help="A few rows of the place with their labels: a file, a folder or a hub id.")],
    output: Annotated[Path, typer.Option(help="The JSON file to write, for predict --prior.")],
    split: Annotated[str, typer.Option(help="The split of the data.")] = "train",
    encoding: EncodingOption = None,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Find how often labels occur at a place that was in no round, so that answers fit it. Nothing is trained."""
    from fftmoe.setup.personalize import shares_of_place
    from fftmoe.store import write_atomically

    found = shares_of_place(run, data, split, accept_changes, which_round, encoding)
    write_atomically(output, (json_text(found.shares, indent=2) + "\n").encode(), private=True)
    what = f"{output}: shares of {count_of(len(found.shares), 'label')} from {count_of(found.rows, 'row')}"
    use = f"fftmoe predict {quoted(run)} 'some input' --prior {quoted(output)}"
    sys.stdout.write(shown(f"{what}; use them: {use}\n"))
