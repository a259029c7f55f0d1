"""Defines `fftmoe evaluate` and `fftmoe predict`, which use the model of a finished run."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fftmoe.cli.answers import LineInPieces, answer_line, on_terminal
from fftmoe.cli.arguments import (
    AcceptUseOption,
    ClientOption,
    EncodingOption,
    NewTokensOption,
    PriorOption,
    RoundOption,
    RunArgument,
    SeedOption,
    TemperatureOption,
    TopPOption,
    split_list,
)
from fftmoe.cli.lines import say_prompt_form
from fftmoe.errors import InputError
from fftmoe.report.console import Console
from fftmoe.shown import shown_json
from fftmoe.strict import json_text

InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TEXTS]...",
        help="Texts or prompts; for a run on images, image files or folders. Default: lines of standard input.",
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(help="Further inputs: one text a line, or a column of a table, such as .csv or .json."),
]


def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option(help="Another data source; default: the run's own.")] = None,
    encoding: EncodingOption = None,
    split: Annotated[str, typer.Option(help="train, test or validation.")] = "test",
    top_k: Annotated[
        str | None,
        typer.Option(
            help="Experts per token; several numbers, such as 1,2,4, print a list. Default: as the largest tier."
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,…",
            help="Measure a language model on tasks of lm-evaluation-harness instead: names, or task files.",
        ),
    ] = None,
    harness_limit: Annotated[int | None, typer.Option(min=1, help="With --harness: examples of each task.")] = None,
    client: ClientOption = None,
    prior: PriorOption = None,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Measure a finished run, and print its metrics as JSON."""
    values = _top_k_values(top_k)
    named = _harness_tasks(harness, harness_limit, data)
    if named is not None and (client is not None or prior is not None):
        raise InputError("--harness measures the common model; leave --client and --prior out")
    from fftmoe.setup.asked import evaluate_run, harness_run
    from fftmoe.trained.harness import HarnessTasks

    def measured(k: int | None) -> dict[str, Any]:
        if named is not None:
            return harness_run(run, HarnessTasks(named, harness_limit), k, accept_changes, which_round)
        return evaluate_run(run, data, split, k, accept_changes, which_round, encoding, client, prior)

    metrics = [{**({"top_k": k} if len(values) > 1 else {}), **measured(k)} for k in values]
    shown = metrics if len(values) > 1 else metrics[0]
    sys.stdout.write(shown_json(json_text(shown, indent=2, ascii_only=not _takes_all_characters())) + "\n")


def _harness_tasks(harness: str | None, limit: int | None, data: str | None) -> list[str] | None:
    """Return the tasks of lm-evaluation-harness that are asked for; None for the run's own metrics."""
    named = split_list(harness)
    if named is None and limit is not None:
        raise InputError("--harness-limit applies to tasks of lm-evaluation-harness; add --harness TASK,…")
    if named is not None and data is not None:
        raise InputError(
            "--data and --harness do not fit: a task of lm-evaluation-harness names its own data; leave one of them out"
        )
    return named


def predict(
    run: RunArgument,
    inputs: InputsArgument = None,
    file: FileOption = None,
    column: Annotated[str | None, typer.Option(help="The column of --file; default: the recipe's.")] = None,
    encoding: EncodingOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the answers to this file instead, whole or not at all.")
    ] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Print the scores of all labels as well.")] = False,
    top_k: Annotated[int | None, typer.Option(help="Experts per token; default: as the largest tier.")] = None,
    client: ClientOption = None,
    prior: PriorOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per batch.")] = 64,
    max_new_tokens: NewTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    which_round: RoundOption = "kept",
    accept_changes: AcceptUseOption = False,
) -> None:
    """Label texts or images, or complete prompts, with a finished run; prints one JSON object a line."""
    from fftmoe.setup.asked import Questions, answers_of_run
    from fftmoe.setup.finished import finished_run

    found = finished_run(run, accept_changes, which_round)  # checked before a person types anything
    from_terminal = not inputs and file is None and not found.reads_images
    asked: Sequence[str] = _lines_of_input(encoding) if from_terminal else inputs or ()
    ascii_only = output is None and not _takes_all_characters()
    alone = found.is_language_model and inputs and len(inputs) == 1 and file is None and output is None
    printed = LineInPieces(inputs[0], ascii_only) if alone and inputs and on_terminal() else None
    questions = Questions(
        asked,
        top_k,
        file=file,
        column=column,
        encoding=encoding,
        scores=scores,
        client=client,
        prior=prior,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        on_text=None if printed is None else printed.add,
    )
    rows = answers_of_run(found, questions, which_round)
    say_prompt_form(Console(stderr=True), found.inputs.prompt_column, found.inputs.chat_template, found.backbone.model)
    _write_answers(rows, output, ascii_only, printed)


def _write_answers(
    rows: Iterable[Mapping[str, Any]], output: Path | None, ascii_only: bool, printed: LineInPieces | None
) -> None:
    """Write a line for each answer: to the file when all are there, or to standard output one after another."""
    from fftmoe.store import write_atomically

    if output is not None:
        lines = "".join(answer_line(row, ascii_only) for row in rows)
        write_atomically(output, lines.encode(), private=False)
        return
    for row in rows:
        sys.stdout.write(answer_line(row, ascii_only) if printed is None else printed.rest(row))
        sys.stdout.flush()  # a row is there for the next program while later ones are computed


def _takes_all_characters() -> bool:
    """Return whether standard output can show every character;
    otherwise JSON's own escapes stand for those beyond ASCII.
    """
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"


def _lines_of_input(encoding: str | None) -> list[str]:
    """Return the lines of standard input, read as a file is: in UTF-8 or in this encoding, whatever the locale says.

    Raises:
        InputError: they are no text.
    """
    from fftmoe.data import decoded, encoding_option, lines_of

    stated = encoding_option(encoding)
    try:
        return lines_of(decoded(sys.stdin.buffer.read(), stated))
    except ValueError as error:
        raise InputError(f"cannot read standard input as one text per line; {error}") from error


def _top_k_values(text: str | None) -> Sequence[int | None]:
    """Return the numbers of `1,2,4`; a single None where nothing was given."""
    try:
        return [None] if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--top-k {text}: write one number of experts, or several such as 1,2,4") from None
