"""`fftmoe init`: reads a person's own CSV data, reports its columns, and writes a first recipe for it."""

import csv
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.errors import InputError, did_you_mean

TEXT_NAMES = ("text", "sentence", "content", "note", "message", "question")
LABEL_NAMES = ("label", "class", "category", "intent", "target")
MAX_LABELS = 200
TEST_FRACTION = 0.2  # of a single file
TOKENS_PER_WORD = 1.4
MIN_CLIENT_EXAMPLES = 20  # if no column names the clients
LONGEST, STEP = 128, 16  # tokens: the largest `max_length`, and its multiples
CsvRow = dict[str, str]


@dataclass(frozen=True)
class DataSummary:
    """The training and test rows of a data set, its columns, and the length of most texts in tokens.

    Attributes:
        source: the folder that a recipe names.
        text: the column of texts, as `label` and `by` for the labels and the natural clients (None: no such column).
    """

    source: Path
    train: Sequence[CsvRow]
    test: Sequence[CsvRow]
    text: str
    label: str
    by: str | None
    max_length: int

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the training rows, sorted."""
        return sorted({row[self.label] for row in self.train})

    @property
    def clients(self) -> list[str]:
        """The natural clients, sorted; empty if no column names them."""
        return sorted({row[self.by] for row in self.train}) if self.by else []


def init(
    data: Annotated[Path, typer.Argument(help="A folder with train.csv and test.csv, or one CSV file to be split.")],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("mine.yaml"),
    text: Annotated[str | None, typer.Option(help="The column of texts; default: guessed, and printed.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels; default: guessed, and printed.")] = None,
    by: Annotated[str | None, typer.Option(help="The column that says who holds a row, e.g. hospital.")] = None,
) -> None:
    """Look at your own data and write a first recipe for it."""
    if output.exists():
        raise InputError(f"--output {output}: the file is there already; name another, or remove it")
    folder, splits = _splits(data)
    summary = summarize(folder, *splits, text=text, label=label, by=by)
    if data.is_file():
        _write_splits(folder, splits)
    try:
        output.write_text(recipe_text(summary, output), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror}; name another place") from error
    for line in next_steps(summary, output):
        sys.stdout.write(line + "\n")


def _splits(data: Path) -> tuple[Path, tuple[list[CsvRow], list[CsvRow]]]:
    """The folder that a recipe names, and its training and test rows; a single file is split at random."""
    if data.is_dir():
        missing = [name for name in ("train.csv", "test.csv") if not (data / name).is_file()]
        if missing:
            raise InputError(
                f"the folder {data} has no {' and no '.join(missing)}; put both there, or name a single CSV file, "
                "which is then split (parquet and jsonl work too: README.md shows a recipe)"
            )
        return data, (read_csv(data / "train.csv"), read_csv(data / "test.csv"))
    if data.suffix != ".csv":
        raise InputError(f"{data} is neither a folder nor a CSV file; name a folder with train.csv and test.csv")
    folder = data.with_name(f"{data.stem}-split")
    if folder.exists():
        raise InputError(
            f"{data} would be split into {folder}, which exists already; name that folder as the data, or remove it"
        )
    rows = read_csv(data)
    random.Random(0).shuffle(rows)
    cut = max(1, round(TEST_FRACTION * len(rows)))
    return folder, (rows[cut:], rows[:cut])


def read_csv(path: Path) -> list[CsvRow]:
    """The rows of a CSV file with a header line.

    Raises:
        InputError: the file cannot be read, or is not such a file.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; name an existing CSV file") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a valid CSV file: {error}; save it again as CSV") from error
    names = reader.fieldnames or []
    if not rows:
        raise InputError(f"{path} has no rows below its header line; every split needs at least one")
    if len(names) < 2:
        raise InputError(f"{path} has one column, {names[0]!r}; columns must be separated by commas")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} does not have {len(names)} values; correct it, or quote its commas")
    return rows


def summarize(
    source: Path,
    train: Sequence[CsvRow],
    test: Sequence[CsvRow],
    *,
    text: str | None,
    label: str | None,
    by: str | None,
) -> DataSummary:
    """Find the columns of texts and labels: as named, else by common names, else by length and number of values.

    Raises:
        InputError: a named column does not exist, no column looks like labels, a row has no value in one of the three
            columns, or a label has no training row.
    """
    columns = list(train[0])
    for name, column in (("--text", text), ("--label", label), ("--by", by)):
        if column is not None and column not in columns:
            raise InputError(f"{name} {column}: the data has no such column{did_you_mean(column, columns)}")
    free = [column for column in columns if column not in (text, label, by)]
    label = label or _guess_label(train, free)
    text = text or _guess_text(train, [column for column in free if column != label])
    _check_filled((*train, *test), {"--text": text, "--label": label, "--by": by})
    unseen = sorted({row[label] for row in test} - {row[label] for row in train})
    if unseen:
        raise InputError(
            f"label {unseen[0]!r} of column {label!r} occurs only in the test rows; add training rows with it, "
            "remove those rows, or name another column with --label"
        )
    lengths = sorted(_estimated_tokens(row[text]) for row in train)
    tokens = lengths[int(0.9 * (len(lengths) - 1))] + 2  # nine texts in ten are no longer
    return DataSummary(source, train, test, text, label, by, min(LONGEST, STEP * -(-int(tokens) // STEP)))


def _estimated_tokens(text: str) -> float:
    """The estimated tokens of a text, without its tokenizer, which would take seconds to load.

    A letter outside ASCII counts as a token: a tokenizer that was made for English mostly splits a word of another
    script into its letters, and Chinese and Japanese have no spaces between words.
    """
    return TOKENS_PER_WORD * len(text.split()) + sum(letter > "\x7f" for letter in text)


def _check_filled(rows: Sequence[CsvRow], columns: Mapping[str, str | None]) -> None:
    """Check that every row has a text, a label and a client; `columns` by the option that names them."""
    for option, column in columns.items():
        empty = sum(not row[column].strip() for row in rows) if column else 0
        if empty:
            raise InputError(
                f"column {column!r} is empty in {empty} of {len(rows)} rows, and a run needs a value in each; fill "
                f"them in, remove these rows, or name another column with {option}"
            )


def _guess_label(rows: Sequence[CsvRow], columns: Sequence[str]) -> str:
    """The column with a common name for labels, else the one with the fewest values, but at least two."""
    values = {column: len({row[column] for row in rows}) for column in columns}
    possible = [column for column in columns if 2 <= values[column] <= min(MAX_LABELS, len(rows) // 2)]
    named = [column for column in possible if column.lower() in LABEL_NAMES]
    if not possible:
        shown = ", ".join(f"{column} ({number} values)" for column, number in values.items())
        raise InputError(f"no column looks like labels among {shown}; name it with --label")
    return named[0] if named else min(possible, key=lambda column: values[column])


def _guess_text(rows: Sequence[CsvRow], columns: Sequence[str]) -> str:
    """The column with a common name for texts, else the one with the most characters."""
    named = [column for column in columns if column.lower() in TEXT_NAMES]
    if not columns:
        raise InputError("no column is left for the texts; name them with --text and --label")
    return named[0] if named else max(columns, key=lambda column: sum(len(row[column]) for row in rows))


def _write_splits(folder: Path, splits: Sequence[Sequence[CsvRow]]) -> None:
    try:
        folder.mkdir()
        for name, rows in zip(("train", "test"), splits, strict=True):
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; make room, or name data elsewhere") from error


def recipe_text(data: DataSummary, output: Path) -> str:
    """A recipe in YAML, with a comment at values that a person may want to change."""
    count = len(data.clients) or max(2, min(10, len(data.train) // MIN_CLIENT_EXAMPLES))
    partition = (
        f"{{kind: natural, by: {as_yaml(data.by)}}}  # one client for each value of that column"
        if data.by
        else f"{{kind: iid, num_clients: {count}}}  # or {{kind: natural, by: a column that says who holds a row}}"
    )
    return f"""\
# fftmoe plan {output}    what it will cost, before anything trains
# fftmoe run {output}     trains; then fftmoe evaluate and fftmoe predict
backbone: {{model: "builtin:minilm"}}  # or a local folder, or a hub id, of an encoder
data:
  source: {as_yaml(str(data.source.absolute()))}
  text: {as_yaml(data.text)}
  label: {as_yaml(data.label)}
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


def next_steps(data: DataSummary, output: Path) -> list[str]:
    """Lines for the terminal: the data as it was read, the guesses, and the commands to type next."""
    labels, clients = data.labels, data.clients
    shown = ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
    who = f"{len(clients)} clients by column {data.by!r}" if data.by else "rows go to clients at random (no --by)"
    return [
        f"{len(data.train)} training rows, {len(data.test)} test rows in {data.source}",
        f"texts: column {data.text!r}; labels: column {data.label!r}, {len(labels)} of them ({shown})",
        who,
        f"wrote {output}; read it, then: fftmoe plan {output} && fftmoe run {output}",
    ]
