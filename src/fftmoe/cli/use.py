"""`fftmoe evaluate` and `fftmoe predict`: a finished run at work."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fftmoe.errors import InputError

RunArgument = Annotated[Path, typer.Argument(help="The folder of a finished run.", metavar="RUN")]


def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option(help="Another source; default: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="train, test or validation.")] = "test",
    top_k: Annotated[
        str | None,
        typer.Option(help="Experts a token uses; several, as 1,2,4, print a list. Default: the largest tier's."),
    ] = None,
) -> None:
    """Measure a finished run; prints JSON."""
    chosen = _numbers(top_k)
    from fftmoe.trained.load import evaluate_run

    measures: list[dict[str, Any]] = [
        {**({"top_k": k} if len(chosen) > 1 else {}), **evaluate_run(run, data, split, k)} for k in chosen
    ]
    sys.stdout.write(json.dumps(measures if len(chosen) > 1 else measures[0], indent=2) + "\n")


def predict(
    run: RunArgument,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXTS]...",
            help="Texts or prompts; of a run on images, image files or folders. Default: the lines of standard input.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="More of them: one text a line, or a column of .csv, .jsonl or .parquet.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of --file; default: the recipe's.")] = None,
    output: Annotated[Path | None, typer.Option(help="A file for the answers, whole or not at all.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="With the scores of all labels.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Experts a token uses; default: the largest tier's.")] = None,
    client: Annotated[int | None, typer.Option(help="Ask this client's own model.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Answered at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a language model's completion.")] = 64,
) -> None:
    """Label texts or images, or complete prompts, with a finished run; prints one JSON object a line."""
    from fftmoe.setup.load import reads_images
    from fftmoe.store import write_atomically
    from fftmoe.trained.load import recipe_of
    from fftmoe.trained.predict import predict_run

    # What is no run is told before anybody types.
    from_terminal = not inputs and file is None and not reads_images(recipe_of(run))
    rows = predict_run(
        run,
        sys.stdin.read().splitlines() if from_terminal else inputs or (),
        top_k,
        file=file,
        column=column,
        scores=scores,
        client=client,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    lines = _lines(rows)
    if output is not None:
        write_atomically(output, lines.encode())
    else:
        sys.stdout.write(lines)


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _numbers(text: str | None) -> Sequence[int | None]:
    """`1,2,4`; one None where nothing was said."""
    try:
        return [None] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--top-k {text}: write a number of experts, or several, e.g. 1,2,4") from None
