"""Labelled texts from where they are: the builtin set, a local folder, or the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fftmoe.data.read import NEEDED, Table, read_folder, read_hub
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.errors import InputError, did_you_mean

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Attributes:
        texts: N texts, none empty.
        labels: int64 [N], indices into `LabelledText.label_names`.
        columns: further columns by name, N values each, e.g. the one that names each example's natural
            client.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class LabelledText:
    """Splits `train`, `test` and perhaps `validation`, and the name of each label."""

    splits: dict[str, Split]
    label_names: tuple[str, ...]

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.label_names)


@dataclass(frozen=True)
class Wanted:
    """What is asked of a source.

    Attributes:
        needed: the splits that it must have.
        label_names: the labels and their order, where they are agreed on; else those of the first needed split.
        alone: the other splits are left out, and one label is enough: rows to measure on.
    """

    needed: tuple[str, ...] = NEEDED
    label_names: tuple[str, ...] | None = None
    alone: bool = False


WHOLE = Wanted()


def load_source(
    source: str,
    *,
    text: str = "text",
    label: str = "label",
    extra_columns: Sequence[str] = (),
    wanted: Wanted = WHOLE,
) -> LabelledText:
    """Read a text classification data set.

    Labels that are a `datasets.ClassLabel` keep their names and order; other labels (text or whole numbers)
    are numbered in the sorted order of the distinct training labels. `wanted` may agree on other labels.

    Args:
        source: `builtin:stdlib-docs`, a local folder with `train.*` and `test.*` (parquet, csv or jsonl), or
            a hub id, optionally `id:configuration`.
        text: column that holds the texts.
        label: column that holds the labels.
        extra_columns: further columns to keep, which the training rows must have.

    Raises:
        InputError: the source, a file or a column is missing; a text or label is empty; a label does not
            occur in training.
    """
    tables, labels, label_names = labelled_tables(source, {"data.text": text}, label, extra_columns, wanted)
    splits = {
        name: Split(
            texts=texts_of(table, "data.text", text),
            labels=labels[name],
            columns={column: list(table.rows[column]) for column in extra_columns if column in table.rows.column_names},
        )
        for name, table in tables.items()
    }
    return LabelledText(splits, label_names)


def labelled_tables(
    source: str, content: Mapping[str, str], label: str, extra_columns: Sequence[str], wanted: Wanted = WHOLE
) -> tuple[dict[str, Table], dict[str, np.ndarray], tuple[str, ...]]:
    """A source's tables, with every column there and every label numbered; its contents are not looked at.

    Args:
        source: as `load_source`.
        content: the column that holds the examples, by the recipe's key for it ("data.text").
        label: column that holds the labels.
        extra_columns: further columns that the first needed split must have.

    Returns:
        the tables and the labels, int64 [N], by split; the labels' names.

    Raises:
        InputError: as `load_source`, except for empty texts.
    """
    tables = read_source(source, tuple(content.values()), wanted.needed)
    if missing := [split for split in wanted.needed if split not in tables]:  # of a builtin
        raise InputError(f"{source} has no split {missing[0]!r}; it has {', '.join(tables)}")
    if wanted.alone:
        tables = {split: tables[split] for split in wanted.needed}
    for split, table in tables.items():
        further = extra_columns if split == wanted.needed[0] else ()  # who holds a test row is no question
        for column in dict.fromkeys((*content.values(), label, *further)):
            require_column(table, column, [*content, "data.label", "partition.by"])
    labels = {name: values_of(table, label) for name, table in tables.items()}
    first = wanted.needed[0]
    known = wanted.label_names or _known(tables[first], label, labels[first], fewest=1 if wanted.alone else 2)
    # By name, because one file may hold the number 1 and another the text "1".
    label_ids = {str(value): index for index, value in enumerate(known)}
    numbered = {name: _label_ids(labels[name], label_ids, table, wanted) for name, table in tables.items()}
    return tables, numbered, tuple(label_ids)


def _known(table: Table, label: str, values: Sequence[Any], fewest: int) -> Sequence[Any]:
    """The labels that this split decides on, in their order."""
    feature = table.rows.features[label]
    known = feature.names if isinstance(feature, datasets.ClassLabel) else sorted(set(values))
    if len(known) < fewest:
        raise InputError(
            f"{table.where}: column {label!r} holds one label only ({known[0]!r}); a classifier"
            " needs at least two: name another column with data.label"
        )
    return known


def read_source(source: str, text_columns: tuple[str, ...], needed: Sequence[str]) -> dict[str, Table]:
    """A source's tables by split, as they are.

    Args:
        text_columns: of csv files, those that hold texts. needed: the splits that must be there.

    Raises:
        InputError: the source or a file is missing.
    """
    if source.startswith(BUILTIN):
        return _read_builtin(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return read_folder(folder, text_columns, needed)
    if folder.exists():
        raise InputError(f"data.source={source!r} is a file: name the folder that holds it, as train.* beside test.*")
    if not source or source[0] in "./~\\" or source.count("/") > 1:
        raise InputError(
            f"data.source={source!r} is no folder (looked for {folder.absolute()}); give a folder that holds"
            f" train.* and test.*, a hub id such as fancyzhx/ag_news, or {BUILTIN}stdlib-docs"
        )
    return read_hub(source, needed)


def _read_builtin(source: str) -> dict[str, Table]:
    name = source.removeprefix(BUILTIN)
    if name != "stdlib-docs":
        raise InputError(f"data.source={source!r} is not a builtin data set{did_you_mean(name, ['stdlib-docs'])}")
    return {
        split: Table(
            f"{source} ({split})",
            datasets.Dataset.from_dict(
                {name: [row[i] for row in rows] for i, name in enumerate(("text", "label", "module"))}
            ),
        )
        for split, rows in stdlib_docs().items()
    }


def require_column(table: Table, column: str, keys: Sequence[str]) -> None:
    """Whether the table has rows, and this column; `keys` of the recipe name others.

    Raises:
        InputError: it has not.
    """
    present = table.rows.column_names
    if column not in present:
        if len(present) == 1 and any(other in present[0] for other in ";\t|"):
            raise InputError(
                f"{table.where} has one column, {present[0]!r}: its columns must be separated by a comma; write it anew"
                " with commas (a spreadsheet offers that when it saves CSV)"
            )
        near = did_you_mean(column, present)
        near = near if "did you mean" in near else ""
        raise InputError(
            f"{table.where} has no column {column!r}{near}; it has {', '.join(present)}: name one of them with"
            f" {', '.join(keys[:-1])} or {keys[-1]}"
        )
    if table.rows.num_rows == 0:
        raise InputError(f"{table.where} has no rows; every split needs at least one")


def texts_of(table: Table, key: str, column: str) -> tuple[str, ...]:
    """The texts of a column, which the recipe names with `key`.

    Raises:
        InputError: one is empty, or none.
    """
    texts = tuple(table.rows[column])
    for row, value in enumerate(texts, start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{table.where}: column {column!r} is empty in row {row}; remove the row or fill it in")
        if not isinstance(value, str):
            raise InputError(
                f"{table.where}: column {column!r} holds {type(value).__name__} values such as {value!r} (row"
                f" {row}); texts must be strings: name another column with {key}"
            )
    return texts


def values_of(table: Table, column: str) -> list[Any]:
    """The column's values, class numbers replaced by their names.

    Raises:
        InputError: one is missing, or neither a text nor a whole number.
    """
    feature = table.rows.features[column]
    values: list[Any] = list(table.rows[column])
    for row, value in enumerate(values, start=1):
        missing = value is None or (isinstance(value, str) and not value.strip())
        if missing or (isinstance(feature, datasets.ClassLabel) and value == -1):
            raise InputError(
                f"{table.where}: column {column!r} has no label in row {row} (value {value!r}); remove the"
                " row or fill it in"
            )
        if not isinstance(value, str | int):
            raise InputError(
                f"{table.where}: column {column!r} holds {type(value).__name__} values such as {value!r} (row"
                f" {row}); labels must be strings or whole numbers: name another column with data.label"
            )
    return [feature.names[value] for value in values] if isinstance(feature, datasets.ClassLabel) else values


def _label_ids(values: list[Any], label_ids: dict[str, int], table: Table, wanted: Wanted) -> np.ndarray:
    unseen = [str(value) for value in values if str(value) not in label_ids]
    if unseen and wanted.label_names:
        raise InputError(
            f"{table.where}: label {unseen[0]!r} occurs in {unseen.count(unseen[0])} rows and is none of the agreed"
            f" labels {', '.join(wanted.label_names[:5])}{', …' if len(wanted.label_names) > 5 else ''}; remove those"
            " rows, or agree on it with data.labels"
        )
    if unseen:
        raise InputError(
            f"{table.where}: label {unseen[0]!r} occurs in {unseen.count(unseen[0])} rows but never in"
            " training; add training rows with it, or remove those rows"
        )
    return np.array([label_ids[str(value)] for value in values], dtype=np.int64)
