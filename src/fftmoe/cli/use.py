"""`fftmoe evaluate` and `fftmoe predict`: use the model of a finished run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fftmoe.cli.arguments import AcceptUseOption, RoundOption
from fftmoe.errors import InputError
from fftmoe.shown import shown_json
from fftmoe.strict import json_text

RunArgument = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TEXTS]...",
        help="Texts or prompts; for a run on images, image files or folders. Default: lines of standard input.",
    ),
]
FileOption = Annotated[
    Path | None, typer.Option(help="Further inputs: one text a line, or a column of .csv, .jsonl or .parquet.")
]


def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option(help="Another data source; default: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="train, test or validation.")] = "test",
    top_k: Annotated[
        str | None,
        typer.Option(
            help="Experts per token; several numbers, such as 1,2,4, print a list. Default: as the largest tier."
        ),
    ] = None,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Measure a finished run, and print its metrics as JSON."""
    values = _top_k_values(top_k)
    from fftmoe.setup.finished import evaluate_run

    metrics: list[dict[str, Any]] = [
        {**({"top_k": k} if len(values) > 1 else {}), **evaluate_run(run, data, split, k, accept_changes, which_round)}
        for k in values
    ]
    shown = metrics if len(values) > 1 else metrics[0]
    sys.stdout.write(shown_json(json_text(shown, indent=2, ascii_only=not _takes_all_characters())) + "\n")


def predict(
    run: RunArgument,
    inputs: InputsArgument = None,
    file: FileOption = None,
    column: Annotated[str | None, typer.Option(help="The column of --file; default: the recipe's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the answers to this file instead, whole or not at all.")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Print the scores of all labels as well.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Experts per token; default: as the largest tier.")] = None,
    client: Annotated[
        str | None, typer.Option(help="Ask the personal model of this client, by its name or number.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per batch.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest completion, in tokens.")] = 64,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Label texts or images, or complete prompts, with a finished run; prints one JSON object a line."""
    from fftmoe.setup.finished import finished_run, predict_run
    from fftmoe.store import write_atomically

    # The run is checked before a person types anything.
    from_terminal = not inputs and file is None and not finished_run(run).reads_images
    rows = predict_run(
        run,
        _lines_of_input() if from_terminal else inputs or (),
        top_k,
        file=file,
        column=column,
        scores=scores,
        client=client,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        accept_changes=accept_changes,
        round=which_round,
    )
    ascii_only = output is None and not _takes_all_characters()
    lines = "".join(shown_json(json_text(row, ascii_only=ascii_only)) + "\n" for row in rows)
    if output is not None:
        write_atomically(output, lines.encode(), private=False)
    else:
        sys.stdout.write(lines)


def _takes_all_characters() -> bool:
    """Whether standard output can show every character; otherwise JSON's own escapes stand for those beyond ASCII."""
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"


def _lines_of_input() -> list[str]:
    """The lines of standard input, read as a file is: in UTF-8, whatever the locale says.

    Raises:
        InputError: they are no text.
    """
    from fftmoe.data import decoded, lines_of

    try:
        return lines_of(decoded(sys.stdin.buffer.read()))
    except ValueError as error:
        raise InputError(f"cannot read standard input: {error}; it should hold one text per line") from error


def _top_k_values(text: str | None) -> Sequence[int | None]:
    """The numbers of `1,2,4`; a single None where nothing was given."""
    try:
        return [None] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--top-k {text}: write one number of experts, or several such as 1,2,4") from None
