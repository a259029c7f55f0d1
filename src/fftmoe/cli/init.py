"""`fftmoe init`: reads a person's own data, reports its columns, and writes a first recipe for it."""

import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.cli.own_data import DataSummary, TextColumns, columns_of, find_roles, split_rows, summarize
from fftmoe.errors import InputError
from fftmoe.shown import quoted, shown_on_a_line

MIN_CLIENT_EXAMPLES = 20  # if no column names the clients


def init(
    data: Annotated[
        Path, typer.Argument(help="A folder with train and test files, or one CSV file to be split.", metavar="DATA")
    ],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("mine.yaml"),
    text: Annotated[str | None, typer.Option(help="The column of texts; default: guessed, and printed.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels; default: guessed, and printed.")] = None,
    by: Annotated[str | None, typer.Option(help="The column that says who holds a row, e.g. hospital.")] = None,
) -> None:
    """Look at your own data and write a first recipe for it."""
    if output.exists():
        raise InputError(f"--output {output}: the file is there already; name another, or remove it")
    summary = (_of_folder if data.is_dir() else _of_file)(data, text, label, by)
    try:
        output.write_text(recipe_text(summary, output), encoding="utf-8")
    except OSError as error:
        if summary.source != data:  # the new folder with the splits, which would refuse the next try
            shutil.rmtree(summary.source)
        raise InputError(f"cannot write --output {output}: {error.strerror}; name another place") from error
    for line in next_steps(summary, output):
        sys.stdout.write(shown_on_a_line(line) + "\n")


def _of_folder(folder: Path, text: str | None, label: str | None, by: str | None) -> DataSummary:
    """What a recipe needs to know about a folder, which stays as it is."""
    from fftmoe.data.read import read_folder

    tables = read_folder(folder)
    train, test = columns_of(tables["train"]), columns_of(tables["test"])
    return summarize(folder, train, test, find_roles(train, text, label, by))


def _of_file(path: Path, text: str | None, label: str | None, by: str | None) -> DataSummary:
    """What a recipe needs to know about a single file, whose rows are divided at random and written to a new folder."""
    from fftmoe.data.read import read_table

    if path.suffix.lower() != ".csv":
        raise InputError(
            f"{path} is neither a folder nor a CSV file; name a folder with train.* and test.* (csv, jsonl, parquet)"
        )
    folder = path.with_name(f"{path.stem}-split")
    if folder.exists():
        raise InputError(
            f"{path} would be split into {folder}, which exists already; name that folder as the data, or remove it"
        )
    columns = columns_of(read_table(path))
    roles = find_roles(columns, text, label, by)
    train, test = (
        {name: [own[row] for row in rows] for name, own in columns.items()} for rows in split_rows(columns, roles)
    )
    summary = summarize(folder, train, test, roles)
    _write_splits(folder, {"train": train, "test": test})
    return summary


def _write_splits(folder: Path, splits: dict[str, TextColumns]) -> None:
    try:
        folder.mkdir()
        for name, columns in splits.items():
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)  # it did not exist before
        raise InputError(f"cannot write {folder}: {error.strerror}; make room, or name data elsewhere") from error


def recipe_text(data: DataSummary, output: Path) -> str:
    """A recipe in YAML, with a comment at values that a person may want to change."""
    count = len(data.clients) or max(2, min(10, data.num_train // MIN_CLIENT_EXAMPLES))
    partition = (
        f"{{kind: natural, by: {as_yaml(data.roles.by)}}}  # one client for each value of that column"
        if data.roles.by
        else f"{{kind: iid, num_clients: {count}}}  # or {{kind: natural, by: a column that says who holds a row}}"
    )
    return f"""\
# fftmoe plan {quoted(output)}    what it will cost, before anything trains
# fftmoe run {quoted(output)}     trains; then fftmoe evaluate and fftmoe predict
backbone: {{model: "builtin:minilm"}}  # or a local folder, or a hub id, of an encoder
data:
  source: {as_yaml(str(data.source.absolute()))}
  text: {as_yaml(data.roles.text)}
  label: {as_yaml(data.roles.label)}
  max_length: {data.max_length}  # tokens; nine texts in ten are no longer
partition: {partition}
adapter: {{num_experts: 16, expert_dim: 16, blocks: last-2}}  # more blocks learn more and take longer
head: {{kind: closed-form, features: fourier, num_features: 1024, every: 10,  # computed from the clients' statistics
  learning_rate: 1.0}}  # only for a head that clients train, as `fftmoe compare --heads averaged` asks for
budgets:  # half of the clients hold 4 experts of every block and use 1 per token, the others hold all 16 and use 2
  - {{name: small, fraction: 0.5, top_k: 1, experts: 4}}
  - {{name: large, fraction: 0.5, top_k: 2, experts: 16}}
federation: {{rounds: 10, clients_per_round: {min(count, 5)}, local_epochs: 1, batch_size: 16, learning_rate: 4.0e-3}}
engine: {{workers: auto}}
"""


def as_yaml(text: str | None) -> str:
    """A string with any content as YAML in double quotes."""
    import yaml

    return yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True).strip()


def next_steps(data: DataSummary, output: Path) -> Sequence[str]:
    """Lines for the terminal: the data as it was read, the guesses, and the commands to type next."""
    labels, clients, roles = data.labels, data.clients, data.roles
    some = ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
    who = f"{len(clients)} clients by column {roles.by!r}" if roles.by else "rows go to clients at random (no --by)"
    return [
        f"{data.num_train} training rows, {data.num_test} test rows in {data.source}",
        f"texts: column {roles.text!r}; labels: column {roles.label!r}, {len(labels)} of them ({some})",
        who,
        *(f"warning: {note}" for note in data.notes),
        f"wrote {output}; read it, then: fftmoe plan {quoted(output)} && fftmoe run {quoted(output)}",
    ]
