"""From the name of a source to its tables: the builtin set, a local folder, or the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fftmoe.data.hub import read_hub
from fftmoe.data.read import REQUIRED_SPLITS, read_folder
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.data.table import Table
from fftmoe.errors import InputError, did_you_mean, looked_up

BUILTIN = "builtin:"


@dataclass(frozen=True)
class SplitRequest:
    """The splits that are read from a source.

    Attributes:
        splits: the splits that the source must have.
        label_names: the labels in their order, if they are agreed on; else the first of `splits` decides them.
        evaluation: the rows are only evaluated on: other splits are ignored, and one label is enough.
        declared: nobody may learn that a training row has a label that is not among `label_names`
            (`with_declared_labels`).
    """

    splits: tuple[str, ...] = REQUIRED_SPLITS
    label_names: tuple[str, ...] | None = None
    evaluation: bool = False
    declared: bool = False


TRAIN_AND_TEST = SplitRequest()


def read_tables(
    source: str,
    content: Mapping[str, Sequence[str]],
    extra_columns: Sequence[str] = (),
    request: SplitRequest = TRAIN_AND_TEST,
) -> dict[str, Table]:
    """The tables of a source by split, with every column that is asked for; their values are not checked.

    Args:
        source: `builtin:stdlib-docs`, a local folder with `train.*` and `test.*` (parquet, csv or jsonl), or a hub id,
            optionally `id:configuration`.
        content: the columns that every table must have, by the recipe's key for them (`{"data.text": ["text"]}`).
        extra_columns: further columns that the first requested split must have.

    Raises:
        InputError: the source, a split, a file or a column is missing, or a table has no rows.
    """
    tables = read_source(source, request.splits)
    if missing := [split for split in request.splits if split not in tables]:  # of a builtin
        raise InputError(f"{source} has no split {missing[0]!r}; it has {', '.join(tables)}")
    if request.evaluation:
        tables = {split: tables[split] for split in request.splits}
    required = [column for columns in content.values() for column in columns]
    for split, table in tables.items():
        further = extra_columns if split == request.splits[0] else ()  # only training rows need a natural client
        for column in dict.fromkeys((*required, *further)):
            _check_column(table, column, [*content, "partition.by"])
    return tables


def read_source(source: str, required: Sequence[str]) -> dict[str, Table]:
    """All tables of a source by split, unchecked.

    Args:
        required: the splits that must exist.

    Raises:
        InputError: the source or a file is missing.
    """
    if source.startswith(BUILTIN):
        return _read_builtin(source)
    with looked_up(f"data.source={source!r:.200}"):
        folder = Path(source).expanduser()
        if folder.is_dir():
            return read_folder(folder, required)
        if folder.exists():
            raise InputError(
                f"data.source={source!r} is a file: name the folder that holds it, with train.* and test.* in it"
            )
    if not source or source[0] in "./~\\" or source.count("/") > 1:
        raise InputError(
            f"data.source={source!r} is not a folder (looked for {folder.absolute()}); give a folder that holds"
            f" train.* and test.*, a hub id such as fancyzhx/ag_news, or {BUILTIN}stdlib-docs"
        )
    return read_hub(source, required)


def _read_builtin(source: str) -> dict[str, Table]:
    name = source.removeprefix(BUILTIN)
    if name != "stdlib-docs":
        raise InputError(f"data.source={source!r} is not a builtin data set{did_you_mean(name, ['stdlib-docs'])}")
    return {
        split: Table.of(
            f"{source} ({split})",
            dict(zip(("text", "label", "module"), map(list, zip(*rows, strict=True)), strict=True)),
        )
        for split, rows in stdlib_docs().items()
    }


def _check_column(table: Table, column: str, keys: Sequence[str]) -> None:
    """Check that the table has rows and this column.

    Args:
        keys: the recipe's keys that name columns, for the message.

    Raises:
        InputError: it does not.
    """
    if table.num_rows == 0:
        raise InputError(f"{table.where} has no rows; every split needs at least one")
    if column not in table.columns:
        near = did_you_mean(column, table.columns)
        near = near if "did you mean" in near else ""
        raise InputError(
            f"{table.where} has no column {column!r}{near}; it has {', '.join(table.columns)}: name one of them with"
            f" {', '.join(keys[:-1])} or {keys[-1]}"
        )
