"""Reads every data file: the ending of a file's name chooses among the parsers, and nothing else does."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from fftmoe.data.conll import CONLL_SUFFIXES, parse_conll
from fftmoe.data.csv_files import parse_csv, parse_tsv
from fftmoe.data.image_folders import IMAGE_SUFFIXES, read_image_folder
from fftmoe.data.joined_tables import joined_table, require_rows, table_of_clients
from fftmoe.data.json_lines import parse_json, parse_json_lines
from fftmoe.data.packed_files import PACKED, file_bytes, file_kind, file_stem
from fftmoe.data.parquet_files import read_parquet
from fftmoe.data.table import Table
from fftmoe.data.text_encodings import BY_RECIPE, OtherEncodingError, TextEncoding
from fftmoe.data.text_files import NoTextError, decoded, lines_of
from fftmoe.errors import InputError
from fftmoe.shown import count_of

SPLITS = ("train", "test", "validation")
REQUIRED_SPLITS = ("train", "test")
SPLIT_NAMES = (*SPLITS, "valid", "val", "dev", "training", "eval")
_PART = re.compile(r"(?P<split>[a-z]+)-(?P<number>\d+)-of-(?P<all>\d+)")  # of a split, as the hub writes it
TEXT_SUFFIXES = ("csv", "tsv", "jsonl", "ndjson", "json", *CONLL_SUFFIXES)
SUFFIXES = ("parquet", *TEXT_SUFFIXES)
_OTHER_TABLES = ("xls", "xlsx", "ods", "arrow", "feather", "pkl", "pickle")

Columns = Mapping[str, Sequence[Any]]


def read_folder(
    folder: Path, required: Sequence[str] = REQUIRED_SPLITS, encoding: TextEncoding = BY_RECIPE
) -> dict[str, Table]:
    """Return the splits of a folder that holds `train.*`, `test.*` and optionally `validation.*`.

    Each is a file; several parts, `train-00000-of-00002.parquet`; a folder of images in folders of their classes; a
    folder with one table, or with its parts; or a folder with a table for each client. Or the folder has only folders
    of clients, with `train.*` and `test.*` in each. These names may have capitals.

    Args:
        folder: files end in .parquet, .csv or .tsv (a header line, then rows), .jsonl or .ndjson (one object a line),
            .json (a list of objects, or one object a line), or .conll, .bio or .iob (a token and its tag a line).
        required: the splits that must exist.
        encoding: of its text files.

    Raises:
        InputError: a required split is missing, a split has two files, or a file cannot be read.
    """
    inside = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    of_clients = any(_are_of_clients(path) for path in inside if path.is_dir() and split_of(path))
    tables = {}
    for split in SPLITS:
        named = [path for path in inside if file_stem(path).lower() == split]
        found = [path for path in named if path.is_file() and _ends_as_table(path)]
        folders = [path for path in named if path.is_dir() and path.name.lower() == split]
        for several in (found, folders):
            if len(several) > 1:
                names = " and ".join(path.name for path in several)
                raise InputError(f"{folder} holds both {names}: keep one for the {split} split")
        if found:
            tables[split] = _read_file(found[0], encoding)
        elif parts := [path for path in tables_in(folder) if _part(path) and split_of(path) == split]:
            tables[split] = _joined_parts(folder, parts, encoding)
        elif folders and (own := _split_in(folders[0], of_clients, encoding)) is not None:
            tables[split] = own
    tables = tables or _splits_of_clients(folder, encoding)
    require_splits(required, tables, f"the folder {folder}{not_read(folder, set(required) - set(tables))}")
    return tables


def split_of(path: Path) -> str | None:
    """Return the split that a file or a folder is named after; None for any other."""
    part = _part(path)
    name = part["split"] if part else file_stem(path).lower()
    return name if name in SPLIT_NAMES else None


def _part(path: Path) -> re.Match[str] | None:
    """Return what the name of a part of a split says; None for any other name."""
    return _PART.fullmatch(file_stem(path).lower())


def tables_in(folder: Path) -> list[Path]:
    """Return the tables in a folder, by their names; those in JSON describe others, unless all are in JSON."""
    # A link that leads nowhere is no folder either: it is named when it is read, and no client is missing unseen.
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    files = [path for path in inside if _ends_as_table(path)]
    return [path for path in files if file_kind(path) != "json"] or files


def _ends_as_table(path: Path) -> bool:
    """Return whether the end of a file's name is that of a table that is read; only text files are read packed."""
    kind = file_kind(path)
    return kind in (TEXT_SUFFIXES if path.suffix.lower() == PACKED else SUFFIXES)


def _are_of_clients(folder: Path) -> bool:
    """Return whether the tables in a folder that is named after a split are of a client each."""
    files = tables_in(folder)
    return len(files) > 1 and not all(map(_part, files)) and not _are_numbered(files)


def _are_numbered(files: Sequence[Path]) -> bool:
    """Return whether files are the parts of a split in parquet as the hub converts it: `0000.parquet` and so on."""
    return [path.name for path in files] == [f"{number:04d}.parquet" for number in range(len(files))]


def _split_in(folder: Path, of_clients: bool, encoding: TextEncoding) -> Table | None:
    """Return the images or the tables in a folder that is named after a split; None if it has neither.

    A single table, and the parts of one, are the split. A table that names images says what they are, and not the names
    of their folders.

    Args:
        of_clients: each table is of a client, here or in the folder of another split.
    """
    files = tables_in(folder)
    has_folders = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
    by_class = has_folders and not (files and names_images(files[0], encoding))
    if by_class and (images := read_image_folder(folder)) is not None:
        return images
    if not files:
        return None
    if of_clients:
        tables = [(file_stem(path), _read_file(path, encoding)) for path in files]
        return table_of_clients(folder, require_rows(tables) if folder.name == "train" else tables)
    if all(map(_part, files)):
        return _joined_parts(folder, files, encoding)
    return joined_table(folder, [(path.name, _read_file(path, encoding)) for path in files])


def _splits_of_clients(folder: Path, encoding: TextEncoding) -> dict[str, Table]:
    """Return the splits of all folders of clients; none where fewer than two folders have training rows."""
    inside = [path for path in sorted(folder.iterdir()) if path.name[0] != "."] if folder.is_dir() else []
    owners = [path for path in inside if path.is_dir() and _has_training_rows(path)]
    if len(owners) < 2:
        return {}
    clients = {path.name: read_folder(path, (), encoding) for path in owners}
    own = {split: [(name, tables[split]) for name, tables in clients.items() if split in tables] for split in SPLITS}
    require_rows(own["train"])
    return {split: table_of_clients(folder, tables) for split, tables in own.items() if tables}


def _has_training_rows(folder: Path) -> bool:
    return any(
        file_stem(path).lower() == "train" and _ends_as_table(path) and path.is_file() for path in folder.iterdir()
    )


def _joined_parts(folder: Path, parts: Sequence[Path], encoding: TextEncoding) -> Table:
    """Return the rows of all parts of a split.

    Raises:
        InputError: a part is missing, or is there twice.
    """
    named = {path: part for path in parts if (part := _part(path)) is not None}
    parts = sorted(named, key=lambda path: int(named[path]["number"]))
    numbers, last = zip(*((int(named[path]["number"]), int(named[path]["all"])) for path in parts), strict=True)
    if set(last) != {len(parts)} or sorted(numbers) != list(range(len(parts))):
        raise InputError(
            f"{folder} holds {count_of(len(parts), 'part')} such as {parts[0].name}, and not each of the "
            f"{count_of(last[0], 'part')} once; add what is missing, and remove what is not of this split"
        )
    return joined_table(folder, [(path.name, _read_file(path, encoding)) for path in parts])


def not_read(folder: Path, missing: Collection[str]) -> str:
    """Name a file that was meant to be one of these splits and has an ending that is not read, for a message."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and path.name.partition(".")[0].lower() in missing and not _ends_as_table(path):
            return f", whose {path.name} is not read (unpack it, or save it as .{', .'.join(SUFFIXES)}),"
    return ""


def check_some_table(folder: Path) -> None:
    """Check that not all files of a folder have endings that are not read, under names of anything but splits.

    Raises:
        InputError: they have.
    """
    inside = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in inside if path.is_file()]
    is_split = any(path.name.partition(".")[0].lower() in SPLIT_NAMES for path in inside)
    if files and not is_split and not any(map(_ends_as_table, files)):
        raise InputError(
            f"the folder {folder} holds no table: {files[0].name} is not read; save its files as "
            f".{', .'.join(SUFFIXES)}, one for each client"
        )


def is_table(path: Path) -> bool:
    """Return whether a file's name says that it is a table, in whatever case its ending is written.

    Raises:
        InputError: it says that the file is a table of a kind that is not read.
    """
    if file_kind(path) in _OTHER_TABLES:
        raise InputError(f"{path} is a table of a kind that is not read; save it as .{', .'.join(SUFFIXES)}")
    return _ends_as_table(path)


def read_table(path: Path, encoding: TextEncoding = BY_RECIPE) -> Table:
    """Read one table of any name, see `SUFFIXES`.

    Raises:
        InputError: it cannot be read, or has another ending.
    """
    if not path.is_file() or not is_table(path):
        raise InputError(f"{path} is not a file that ends in .{', .'.join(SUFFIXES)}; name one that does")
    return _read_file(path, encoding)


def names_images(path: Path, encoding: TextEncoding) -> bool:
    """Return whether a table has a column of paths of images that are there: then it says what they are, and not the
    names of their folders.

    Raises:
        OtherEncodingError: it may have one.
    """
    try:
        columns = _read_file(path, encoding).columns.values()
        firsts = [next(filter(None, values), None) for values in columns]
        return any(
            isinstance(first, str) and first.lower().endswith(IMAGE_SUFFIXES) and (path.parent / first).is_file()
            for first in firsts
        )
    except OtherEncodingError:
        raise
    except (InputError, OSError, ValueError):  # a table of something else, or no path
        return False


def read_lines(path: Path, encoding: TextEncoding = BY_RECIPE) -> list[str]:
    """Return the lines of a text file, blank ones too; see `lines_of`.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    try:
        return lines_of(decoded(file_bytes(path), encoding))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read --file {path} as one text per line; {reason}") from error


def require_splits(required: Sequence[str], tables: Mapping[str, Table], what: str) -> None:
    """Check that these splits are there.

    Args:
        what: where they were looked for.

    Raises:
        InputError: one is missing.
    """
    missing = [split for split in required if split not in tables]
    if missing:
        files = " and ".join(f"{split}.parquet (or .csv, .jsonl)" for split in missing)
        present = ", ".join(sorted(tables)) or "none"
        raise InputError(
            f"{what} has no {' and no '.join(missing)} split (it has {present}); data.source needs"
            f" {' and '.join(required)}: add {files} to a local folder and name that folder"
        )


def _read_file(path: Path, encoding: TextEncoding) -> Table:
    suffix = file_kind(path)
    try:
        columns, num_rows, class_names = TABLE_READERS[suffix](path, encoding)
    except InputError:
        raise
    except NoTextError as error:
        what = f"{path} cannot be read as {suffix}: {error.what}"
        raise OtherEncodingError(what, error.likely, error.remedy) from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            reason = "it needs more memory than there is"
        remedy = "correct the file, or write it again with a library such as pandas"
        raise InputError(f"{path} cannot be read as {suffix}: {reason}; {remedy}") from error
    return Table(str(path), columns, num_rows, class_names, path.parent)


TableReader = Callable[[Path, TextEncoding], tuple[Columns, int, Mapping]]


def _text_reader(parse: Callable[[str], tuple[Columns, int]]) -> TableReader:
    """Return a reader of a kind of text file."""

    def read(path: Path, encoding: TextEncoding) -> tuple[Columns, int, Mapping]:
        columns, num_rows = parse(decoded(file_bytes(path), encoding))
        return columns, num_rows, {}

    return read


TABLE_READERS: Mapping[str, TableReader] = {
    "parquet": lambda path, _: read_parquet(path),
    "csv": _text_reader(parse_csv),
    "tsv": _text_reader(parse_tsv),
    "jsonl": _text_reader(parse_json_lines),
    "ndjson": _text_reader(parse_json_lines),
    "json": _text_reader(parse_json),
    **dict.fromkeys(CONLL_SUFFIXES, _text_reader(parse_conll)),
}
