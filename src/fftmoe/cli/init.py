"""`fftmoe init`: looks at a person's own CSV data, says what it sees, and writes a first recipe for it."""

import csv
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fftmoe.errors import InputError, did_you_mean

TEXT_NAMES = ("text", "sentence", "content", "note", "message", "question")
LABEL_NAMES = ("label", "class", "category", "intent", "target")
MOST_LABELS = 200
TEST_SHARE = 0.2  # of a single file
TOKENS_A_WORD = 1.4
LEAST_EXAMPLES = 20  # of a client, where nobody says who holds what
Row = dict[str, str]


@dataclass(frozen=True)
class Found:
    """What was seen in the data: its columns, and how long most texts are."""

    source: Path
    train: Sequence[Row]
    test: Sequence[Row]
    text: str
    label: str
    by: str | None
    max_length: int

    @property
    def labels(self) -> list[str]:
        """The classes of the training rows."""
        return sorted({row[self.label] for row in self.train})

    @property
    def clients(self) -> list[str]:
        """The natural clients; none where no column names them."""
        return sorted({row[self.by] for row in self.train}) if self.by else []


def init(
    data: Annotated[Path, typer.Argument(help="A folder with train.csv and test.csv, or one CSV file to be split.")],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("mine.yaml"),
    text: Annotated[str | None, typer.Option(help="The column of texts; default: guessed, and said.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels; default: guessed, and said.")] = None,
    by: Annotated[str | None, typer.Option(help="The column that says who holds a row, e.g. hospital.")] = None,
) -> None:
    """Look at your own data and write a first recipe for it."""
    if output.exists():
        raise InputError(f"--output {output}: the file is there already; name another, or remove it")
    folder, splits = _splits(data)
    found = look(folder, *splits, text=text, label=label, by=by)
    if data.is_file():
        _write_split(folder, splits)
    try:
        output.write_text(recipe(found, output), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write --output {output}: {error.strerror}; name another place") from error
    for line in told(found, output):
        sys.stdout.write(line + "\n")


def _splits(data: Path) -> tuple[Path, tuple[list[Row], list[Row]]]:
    """The folder that a recipe names, and its training and test rows; those of a single file are drawn."""
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
        raise InputError(f"{data} would be split into {folder}, which is there already; name that folder, or remove it")
    rows = read_csv(data)
    random.Random(0).shuffle(rows)
    cut = max(1, round(TEST_SHARE * len(rows)))
    return folder, (rows[cut:], rows[:cut])


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV file with a header line.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    names = reader.fieldnames or []
    if not rows:
        raise InputError(f"{path} has no rows below its header line; every split needs at least one")
    if len(names) < 2:
        raise InputError(f"{path} has one column, {names[0]!r}; columns must be separated by commas")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} has not {len(names)} values; mend it, or quote its commas")
    return rows


def look(
    source: Path,
    train: Sequence[Row],
    test: Sequence[Row],
    *,
    text: str | None,
    label: str | None,
    by: str | None,
) -> Found:
    """Which column is what: as said, or guessed by name, then texts as the longest and labels as the fewest values.

    Raises:
        InputError: a column that is named is not there, or none looks like labels.
    """
    columns = list(train[0])
    for name, column in (("--text", text), ("--label", label), ("--by", by)):
        if column is not None and column not in columns:
            raise InputError(f"{name} {column}: the data has no such column{did_you_mean(column, columns)}")
    free = [column for column in columns if column not in (text, label, by)]
    label = label or _label(train, free)
    text = text or _text(train, [column for column in free if column != label])
    unseen = sorted({row[label] for row in test} - {row[label] for row in train})
    if unseen:
        raise InputError(
            f"label {unseen[0]!r} of column {label!r} occurs in the test rows alone; add training rows with it, "
            "remove those rows, or name another column with --label"
        )
    words = sorted(len(row[text].split()) for row in train)
    most = TOKENS_A_WORD * words[int(0.9 * (len(words) - 1))] + 2
    return Found(source, train, test, text, label, by, min(128, 16 * -(-int(most) // 16)))


def _label(rows: Sequence[Row], columns: Sequence[str]) -> str:
    values = {column: len({row[column] for row in rows}) for column in columns}
    possible = [column for column in columns if 2 <= values[column] <= min(MOST_LABELS, len(rows) // 2)]
    named = [column for column in possible if column.lower() in LABEL_NAMES]
    if not possible:
        shown = ", ".join(f"{column} ({number} values)" for column, number in values.items())
        raise InputError(f"no column looks like labels among {shown}; name it with --label")
    return named[0] if named else min(possible, key=lambda column: values[column])


def _text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    named = [column for column in columns if column.lower() in TEXT_NAMES]
    if not columns:
        raise InputError("no column is left for the texts; name them with --text and --label")
    return named[0] if named else max(columns, key=lambda column: sum(len(row[column]) for row in rows))


def _write_split(folder: Path, splits: Sequence[Sequence[Row]]) -> None:
    try:
        folder.mkdir()
        for name, rows in zip(("train", "test"), splits, strict=True):
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; make room, or name data elsewhere") from error


def recipe(found: Found, output: Path) -> str:
    """A recipe in YAML, with a comment where a person may want another value."""
    count = len(found.clients) or max(2, min(10, len(found.train) // LEAST_EXAMPLES))
    who = (
        f"{{kind: natural, by: {quoted(found.by)}}}  # one client for each value of that column"
        if found.by
        else f"{{kind: iid, num_clients: {count}}}  # or {{kind: natural, by: a column that says who holds a row}}"
    )
    return f"""\
# fftmoe plan {output}    what it will cost, before anything trains
# fftmoe run {output}     trains; then fftmoe evaluate and fftmoe predict
backbone: {{model: "builtin:minilm"}}  # or a local folder, or a hub id, of an encoder
data:
  source: {quoted(str(found.source.absolute()))}
  text: {quoted(found.text)}
  label: {quoted(found.label)}
  max_length: {found.max_length}  # tokens; nine texts in ten are no longer
partition: {who}
adapter: {{num_experts: 16, expert_dim: 16, blocks: last-2}}  # more blocks learn more and take longer
head: {{kind: closed-form, features: fourier, num_features: 1024, every: 10,  # solved from sums that everyone sends
  learning_rate: 1.0}}  # of a head that clients train, where a comparison asks for one
budgets:  # half of the clients hold 4 experts of every block and use 1 for a token, the others all 16 and 2
  - {{name: small, fraction: 0.5, top_k: 1, experts: 4}}
  - {{name: large, fraction: 0.5, top_k: 2, experts: 16}}
federation: {{rounds: 10, clients_per_round: {min(count, 5)}, local_epochs: 1, batch_size: 16, learning_rate: 4.0e-3}}
engine: {{workers: auto}}
"""


def quoted(text: str | None) -> str:
    """A string as YAML reads back, whatever it holds."""
    import yaml

    return yaml.safe_dump(text, default_style='"', width=sys.maxsize, allow_unicode=True).strip()


def told(found: Found, output: Path) -> list[str]:
    """What was seen, what was guessed, and what to type next."""
    labels, clients = found.labels, found.clients
    shown = ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")
    who = f"{len(clients)} clients by column {found.by!r}" if found.by else "rows dealt to clients at random (no --by)"
    return [
        f"{len(found.train)} training rows, {len(found.test)} test rows in {found.source}",
        f"texts: column {found.text!r}; labels: column {found.label!r}, {len(labels)} of them ({shown})",
        f"{who}",
        f"wrote {output}; read it, then: fftmoe plan {output} && fftmoe run {output}",
    ]
