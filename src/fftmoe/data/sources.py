"""Finds the tables of a source by its name: the builtin set, a local folder, or the Hugging Face hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fftmoe.data.columns import check_column
from fftmoe.data.hub import read_hub
from fftmoe.data.list_cells import ListCells
from fftmoe.data.paired_chats import with_plain_pairs
from fftmoe.data.prompts_asked import with_columns_asked
from fftmoe.data.read import REQUIRED_SPLITS, check_some_table, is_table, not_read, read_folder, require_splits
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.data.stdlib_instructions import stdlib_instructions
from fftmoe.data.stdlib_preferences import PreferenceRow, stdlib_preferences
from fftmoe.data.table import Table
from fftmoe.data.text_encodings import BY_RECIPE, TextEncoding
from fftmoe.data.undivided import CLIENT, divide, read_undivided
from fftmoe.errors import InputError, did_you_mean, looked_up

BUILTIN = "builtin:"


class BuiltinSet(NamedTuple):
    """Holds the names of the columns of a builtin data set, and what makes its rows by split."""

    columns: tuple[str, ...]
    rows: Callable[[], Mapping[str, Sequence[tuple[str, ...]]]]


BUILTIN_SETS: Mapping[str, BuiltinSet] = {
    "stdlib-docs": BuiltinSet(("text", "label", "module"), stdlib_docs),
    "stdlib-instructions": BuiltinSet(("prompt", "completion", "kind"), stdlib_instructions),
    "stdlib-preferences": BuiltinSet(PreferenceRow._fields, stdlib_preferences),
}
"""The data sets that the package makes from the running Python, by the name after `builtin:`."""


@dataclass(frozen=True)
class RawTables:
    """Holds all tables of a source as they were read, unchecked.

    Attributes:
        source: its name. what: it, as messages call it. folder: it, if it is a local one.
        encoding: in which its text files were read.
        whole: the rows of a source that nobody has divided; None for any other.
        splits: the tables of any other source by split; empty for one that still has to be divided.
    """

    source: str
    what: str
    whole: Table | None
    splits: Mapping[str, Table]
    folder: Path | None = None
    encoding: str | None = None


class ReadAhead:
    """Holds tables that were read before they are needed, for whoever takes them first.

    Nobody else keeps them: a run does not hold its rows twice in memory.
    """

    def __init__(self, tables: RawTables | None = None) -> None:
        self._tables = tables

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns of the training rows, as the source has them; none after `take`."""
        return tuple(training_rows(self._tables)[0].columns) if self._tables else ()

    @property
    def rows(self) -> Table | None:
        """Return the training rows, or all rows of a source that still has to be divided; None after `take`."""
        return training_rows(self._tables)[0] if self._tables else None

    @property
    def is_divided(self) -> bool:
        """Return whether the source has training and test rows of its own; False after `take`."""
        return self._tables is not None and self._tables.whole is None

    def take(self, source: str, encoding: TextEncoding = BY_RECIPE) -> RawTables:
        """Return the tables of this source, which is read if others were read ahead, or none.

        Raises:
            InputError: see `read_raw`.
        """
        tables, self._tables = self._tables, None
        if tables is not None and (tables.source, tables.encoding) == (source, encoding.name):
            return tables
        return read_raw(source, encoding)


@dataclass(frozen=True)
class SplitRequest:
    """Names the splits that are read from a source.

    Attributes:
        splits: the splits that the source must have.
        label_names: the labels in their order, if they are agreed on; else the first of `splits` decides them.
        evaluation: the rows are only evaluated on: other splits are ignored, and one label is enough.
        declared: nobody may learn that a training row has a label that is not among `label_names`
            (`with_declared_labels`), and no row may decide which others are test rows.
        divide: the rows of a source without splits are divided into training and test rows (`undivided.divide`); False:
            all of them are those of the first of `splits`.
        client: the column that names the clients, over which such rows are divided evenly.
        read_ahead: what was read of the source already; None if nothing was.
        encoding: of the source's text files; None: as the recipe says.
        lists: the columns of text that are divided into lists; None if there are none.
    """

    splits: tuple[str, ...] = REQUIRED_SPLITS
    label_names: tuple[str, ...] | None = None
    evaluation: bool = False
    declared: bool = False
    divide: bool = True
    client: str | None = None
    read_ahead: ReadAhead | None = None
    encoding: TextEncoding | None = None
    lists: ListCells | None = None


TRAIN_AND_TEST = SplitRequest()


def read_tables(
    source: str,
    content: Mapping[str, Sequence[str]],
    extra_columns: Sequence[str] = (),
    request: SplitRequest = TRAIN_AND_TEST,
) -> dict[str, Table]:
    """Return the tables of a source by split, with every column that is asked for; their values are not checked.

    Args:
        source: `builtin:stdlib-docs`, a table, a folder with a table for each client, a folder
            with `train.*` and `test.*`, a folder of images by class, or a hub id, optionally `id:configuration`.
        content: the columns that every table must have, by the recipe's key for them (`{"data.text": ["text"]}`).
        extra_columns: further columns that the first requested split must have.

    Raises:
        InputError: the source, a split, a file or a column is missing, or a table has no rows.
    """
    raw = (request.read_ahead or ReadAhead()).take(source, request.encoding or BY_RECIPE)
    if (lists := request.lists) is not None:
        whole = None if raw.whole is None else lists.read(raw.whole)
        raw = replace(raw, whole=whole, splits={split: lists.read(table) for split, table in raw.splits.items()})
    tables = _own_splits(raw, content, request) or _required(raw, request.splits)
    if missing := [split for split in request.splits if split not in tables]:  # of a builtin
        raise InputError(f"{source} has no split {missing[0]!r}; it has {', '.join(tables)}")
    if request.evaluation:
        tables = {split: tables[split] for split in request.splits}
    required = [column for columns in content.values() for column in columns]
    tables = {split: with_columns_asked(table, required) for split, table in tables.items()}
    if "data.chosen" in content:
        ((prompt,), (chosen,), (rejected,)) = (content[f"data.{name}"] for name in ("prompt", "chosen", "rejected"))
        tables = {split: with_plain_pairs(table, prompt, chosen, rejected) for split, table in tables.items()}
    for split, table in tables.items():
        further = extra_columns if split == request.splits[0] else ()  # only training rows need a natural client
        for column in dict.fromkeys((*required, *further)):
            check_column(table, column, [*content, "partition.by"])
    return tables


def training_rows(raw: RawTables) -> tuple[Table, bool]:
    """Return the training rows of a source, or all rows of one that still has to be divided.

    A source that has only other splits, as a server's, gives the first of these.

    Returns:
        the rows, and whether the source has splits of its own.

    Raises:
        InputError: it has no split.
    """
    if raw.whole is not None:
        return raw.whole, False
    require_splits(("train",) if not raw.splits else (), raw.splits, raw.source)
    return raw.splits.get("train") or next(iter(raw.splits.values())), True


def _own_splits(raw: RawTables, content: Mapping[str, Sequence[str]], request: SplitRequest) -> dict[str, Table] | None:
    """Return the splits of a source that has none of its own; None for every other source."""
    whole = raw.whole
    if whole is None:
        return None
    if not request.divide:
        return {request.splits[0]: whole}
    if request.declared:
        raise InputError(
            f"{whole.where} has no test rows of its own, and with differential privacy they must not be chosen among "
            "the clients' rows: one row would decide what happens to others, and the measurement on test rows carries "
            "no noise; put train.* and test.* into a folder and name that folder"
        )
    labels = [*content.get("data.label", ()), *content.get("data.tags", ())]
    return divide(whole, labels[0] if labels else None, request.client or CLIENT)


def _required(raw: RawTables, required: Sequence[str]) -> dict[str, Table]:
    """Return the splits of a source that has its own; those of a builtin are checked by whoever asks."""
    if not raw.source.startswith(BUILTIN):
        others = not_read(raw.folder, set(required) - set(raw.splits)) if raw.folder else ""
        require_splits(required, raw.splits, f"{raw.what}{others}")
    return dict(raw.splits)


def _whole(source: str, encoding: TextEncoding) -> Table | None:
    """Return the rows of a source that nobody has divided; None for every other source."""
    place = local_place(source)
    if place is None:
        return None
    with looked_up(f"data.source={source!r:.200}"):
        return read_undivided(place, encoding)


def local_place(source: str) -> Path | None:
    """Return the file or the folder that a source names; None if it names neither.

    Raises:
        InputError: it cannot be looked up.
    """
    if source.startswith(BUILTIN):
        return None
    with looked_up(f"data.source={source!r:.200}"):
        place = Path(source).expanduser()
        return place if place.exists() else None


def read_raw(source: str, encoding: TextEncoding = BY_RECIPE) -> RawTables:
    """Return all tables of a source, unchecked.

    Args:
        encoding: of its text files.

    Raises:
        InputError: the source or a file is missing, or cannot be read.
    """
    whole = _whole(source, encoding)
    if whole is not None:
        return RawTables(source, whole.where, whole, {}, encoding=encoding.name)
    if source.startswith(BUILTIN):
        return RawTables(source, source, None, _read_builtin(source), encoding=encoding.name)
    place = local_place(source)
    if place is not None:
        with looked_up(f"data.source={source!r:.200}"):
            tables = read_folder(place, (), encoding)
            if not tables:
                check_some_table(place)
            return RawTables(source, f"the folder {place}", None, tables, place, encoding.name)
    _check_no_table(source)
    if not source or source[0] in "./~\\" or source.count("/") > 1:
        raise InputError(
            f"data.source={source!r} is neither a file nor a folder (looked for {Path(source).absolute()}); give a "
            "table, a folder with a table for each client, with train.* and test.* or with images, a hub id such as "
            f"fancyzhx/ag_news, or {BUILTIN}stdlib-docs"
        )
    return RawTables(source, f"the data set {source}", None, read_hub(source, ()), encoding=encoding.name)


def _check_no_table(source: str) -> None:
    """Check that a source which is not there does not end as the name of a table does: none of the hub's does.

    Raises:
        InputError: it does; the message names a file with a similar name.
    """
    path = Path(source)
    if not is_table(path):
        return
    with looked_up(f"data.source={source!r:.200}"):
        folder = path.expanduser().absolute().parent
        beside = [str(path.with_name(other.name)) for other in folder.iterdir()] if folder.is_dir() else []
        near = did_you_mean(source, beside)
    near = near if "did you mean" in near else ""
    raise InputError(
        f"data.source={source!r:.200}: there is no such file in the folder {folder}{near}; correct the name"
    )


def _read_builtin(source: str) -> dict[str, Table]:
    name = source.removeprefix(BUILTIN)
    if name not in BUILTIN_SETS:
        raise InputError(f"data.source={source!r} is not a builtin data set{did_you_mean(name, BUILTIN_SETS)}")
    made = BUILTIN_SETS[name]
    return {
        split: Table.of(f"{source} ({split})", dict(zip(made.columns, map(list, zip(*rows, strict=True)), strict=True)))
        for split, rows in made.rows().items()
    }
