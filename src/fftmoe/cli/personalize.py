"""Defines `fftmoe personalize`, which makes the answers of a run fit a place that was in no round."""

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
    output: Annotated[
        Path, typer.Option(help="A new folder for the model of the place, or a .json file for its label shares alone.")
    ],
    split: Annotated[str, typer.Option(help="The split of the data.")] = "train",
    encoding: EncodingOption = None,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Make answers fit a place that was in no round, by a few rows of its own. No round is repeated."""
    from fftmoe.setup.personalize import open_place, write_place
    from fftmoe.store import check_output, write_atomically

    only_shares = output.suffix == ".json"
    if not only_shares:
        check_output(output)
    place = open_place(run, data, split, accept_changes, which_round, encoding)
    rows = count_of(place.rows, "row")
    if only_shares:
        shares, corrected = place.shares()
        write_atomically(output, (json_text(shares, indent=2) + "\n").encode(), private=True)
        what = f"{output}: shares of {count_of(len(shares), 'label')} from {rows}"
        if not corrected:
            what = f"{output}: the shares of all clients; correcting answers for those of {rows} would not help"
        use = f"fftmoe predict {quoted(run)} 'some input' --prior {quoted(output)}"
    else:
        said = write_place(run, place, output)
        parts = [f"the label shares of {rows}"] if said["corrected"] else []
        parts += [f"a private part that was fitted to {rows}"] if said["private_part"] else []
        what = f"{output}: the model of the run with {' and '.join(parts) or 'the answers of all clients'}"
        if not parts:
            what += f", because correcting them for {rows} would not help"
        elif place.can_have_part and not said["private_part"]:
            what += "; a private part would not help"
        use = f"fftmoe predict {quoted(output)} 'some input'"
    sys.stdout.write(shown(f"{what}; use {'them' if only_shares else 'it'}: {use}\n"))
