"""A person's own data as `fftmoe init` sees it: the columns of names and texts, and which of them holds what."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fftmoe.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from fftmoe.data import Table

TEXT_NAMES = ("text", "sentence", "content", "note", "message", "question")
LABEL_NAMES = ("label", "class", "category", "intent", "target")
MAX_LABELS = 200
TEST_FRACTION = 0.2  # of a single file
TOKENS_PER_WORD = 1.4
LONGEST, STEP = 128, 16  # tokens: the largest `max_length`, and its multiples
TextColumns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Roles:
    """Which column holds what: texts, labels, and the natural clients (None: no such column)."""

    text: str
    label: str
    by: str | None

    def named(self) -> dict[str, str]:
        """The columns by the option that names them."""
        return {"--text": self.text, "--label": self.label, **({"--by": self.by} if self.by else {})}


@dataclass(frozen=True)
class DataSummary:
    """What a recipe needs to know about a data set.

    Attributes:
        source: the folder that a recipe names.
        train: the training rows by column. num_test: the number of test rows.
        max_length: tokens of most texts.
        notes: what a person should know about names that are nearly equal.
    """

    source: Path
    train: TextColumns
    num_test: int
    roles: Roles
    max_length: int
    notes: Sequence[str]

    @property
    def num_train(self) -> int:
        """The number of training rows."""
        return len(self.train[self.roles.text])

    @property
    def labels(self) -> list[str]:
        """The distinct labels of the training rows, in the order of the classes."""
        return _in_order(self.train[self.roles.label])

    @property
    def clients(self) -> list[str]:
        """The natural clients, in their order; empty if no column names them."""
        return _in_order(self.train[self.roles.by]) if self.roles.by else []


def columns_of(table: "Table") -> TextColumns:
    """The columns that can hold texts or names, as texts; a row without a value has an empty one.

    Raises:
        InputError: the table has no rows, or no two such columns.
    """
    from fftmoe.data import plain_columns

    if not table.num_rows:
        raise InputError(f"{table.where} has no rows; every split needs at least one")
    found = plain_columns(table)
    if len(found) < 2:
        raise InputError(
            f"{table.where} needs a column of texts and one of labels, and of its columns ({', '.join(table.columns)}) "
            f"{', '.join(found) or 'none'} can hold one; if it is CSV, its columns must be separated by commas"
        )
    return found


def find_roles(columns: TextColumns, text: str | None, label: str | None, by: str | None) -> Roles:
    """Find the columns of texts and labels: as named, else by common names, else by length and number of values.

    Raises:
        InputError: a named column does not exist or has two roles, no column looks like labels, or a row has no value
            in one of the columns.
    """
    named = {"--text": text, "--label": label, "--by": by}
    for name, column in named.items():
        if column is not None and column not in columns:
            raise InputError(f"{name} {column}: the data has no such column{did_you_mean(column, columns)}")
    twice = [column for column, count in Counter(filter(None, named.values())).items() if count > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} is named twice; name another one with --text, --label or --by")
    free = [column for column in columns if column not in named.values()]
    label = label or _guess_label(columns, free)
    roles = Roles(text or _guess_text(columns, [column for column in free if column != label]), label, by)
    for option, column in roles.named().items():
        values = columns[column]
        empty = sum(not value.strip() for value in values)
        if empty:
            raise InputError(
                f"column {column!r} is empty in {empty} of {len(values)} rows, and a run needs a value in each; fill "
                f"them in, remove these rows, or name another column with {option}"
            )
    return roles


def split_rows(columns: TextColumns, roles: Roles) -> tuple[list[int], list[int]]:
    """Training and test rows at random; every label keeps a training row.

    Raises:
        InputError: no row is left for the tests, because every label has one row only.
    """
    labels = columns[roles.label]
    rows = list(range(len(labels)))
    random.Random(0).shuffle(rows)
    wanted, left = max(1, round(TEST_FRACTION * len(rows))), Counter(labels)
    test: list[int] = []
    for row in rows:
        if len(test) < wanted and left[labels[row]] > 1:
            left[labels[row]] -= 1
            test.append(row)
    if not test:
        raise InputError(
            f"every label of column {roles.label!r} has one row, so none is left for tests; name another column with "
            "--label, or put train.csv and test.csv into a folder"
        )
    drawn = set(test)
    return [row for row in rows if row not in drawn], test


def summarize(source: Path, train: TextColumns, test: TextColumns, roles: Roles) -> DataSummary:
    """Check that a run can use these rows, and describe them.

    Raises:
        InputError: there is only one label or one client, a label has no training row, or a test row lacks a value.
    """
    for option, column in {"--text": roles.text, "--label": roles.label}.items():
        if column not in test or not all(value.strip() for value in test[column]):
            raise InputError(
                f"column {column!r} is not filled in in all test rows; fill it in, or name another one with {option}"
            )
    found = DataSummary(
        source=source,
        train=train,
        num_test=len(test[roles.text]),
        roles=roles,
        max_length=_max_length(train[roles.text]),
        notes=_notes(train, roles),
    )
    unseen = sorted(set(test[roles.label]) - set(train[roles.label]))
    if unseen:
        raise InputError(
            f"label {unseen[0]!r} of column {roles.label!r} occurs only in the test rows; add training rows with it, "
            "remove those rows, or name another column with --label"
        )
    if len(found.labels) < 2:
        raise InputError(f"column {roles.label!r} holds one label only; name another column with --label")
    if roles.by and len(found.clients) < 2:
        raise InputError(
            f"column {roles.by!r} names one client only, {found.clients[0]!r}, and a federation needs two; name "
            "another column with --by, or leave --by out"
        )
    return found


def _in_order(names: Sequence[str]) -> list[str]:
    from fftmoe.data import sorted_names

    return sorted_names(names)


def _notes(train: TextColumns, roles: Roles) -> list[str]:
    from fftmoe.data import near_equal_notes

    notes = [*near_equal_notes("columns", train), *near_equal_notes("labels", train[roles.label])]
    if roles.by:
        notes += near_equal_notes("clients", train[roles.by])
        if len(set(train[roles.by])) == len(train[roles.by]):
            notes.append(f"every row is a client of its own, because no two have the same value of {roles.by!r}")
    return notes


def _max_length(texts: Sequence[str]) -> int:
    lengths = sorted(map(_estimated_tokens, texts))
    tokens = lengths[int(0.9 * (len(lengths) - 1))] + 2  # nine texts in ten are no longer
    return min(LONGEST, STEP * -(-int(tokens) // STEP))


def _estimated_tokens(text: str) -> float:
    """The estimated tokens of a text, without its tokenizer, which would take seconds to load.

    A letter outside ASCII counts as a token: a tokenizer that was made for English mostly splits a word of another
    script into its letters, and Chinese and Japanese have no spaces between words.
    """
    return TOKENS_PER_WORD * len(text.split()) + sum(letter > "\x7f" for letter in text)


def _guess_label(columns: TextColumns, free: Sequence[str]) -> str:
    """The column with a common name for labels, else the one with the fewest values, but at least two."""
    values = {column: len(set(columns[column])) for column in free}
    most = min(MAX_LABELS, len(next(iter(columns.values()))) // 2)
    possible = [column for column in free if 2 <= values[column] <= most]
    named = [column for column in possible if column.lower() in LABEL_NAMES]
    if not possible:
        shown = ", ".join(f"{column} ({number} values)" for column, number in values.items())
        raise InputError(f"no column looks like labels among {shown}; name it with --label")
    return named[0] if named else min(possible, key=lambda column: values[column])


def _guess_text(columns: TextColumns, free: Sequence[str]) -> str:
    """The column with a common name for texts, else the one with the most characters."""
    named = [column for column in free if column.lower() in TEXT_NAMES]
    if not free:
        raise InputError("no column is left for the texts; name them with --text and --label")
    return named[0] if named else max(free, key=lambda column: sum(map(len, columns[column])))
