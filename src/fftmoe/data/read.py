"""Tables from a local folder or from the Hugging Face hub; nothing here knows which columns hold texts or labels."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from pyarrow import csv, parquet

from fftmoe.errors import InputError
from fftmoe.strict import strict_json

SPLITS = ("train", "test", "validation")
REQUIRED_SPLITS = ("train", "test")
SUFFIXES = ("parquet", "csv", "jsonl")
MAX_LEADING_SPACE = 4096  # bytes before the first object


@dataclass(frozen=True)
class Table:
    """The rows of one split; images and sounds in them are not decoded.

    Attributes:
        where: their origin, for messages.
        rows: the rows.
        folder: the folder that they were read from, which must hold the files that they name; None for the hub.
    """

    where: str
    rows: datasets.Dataset
    folder: Path | None = None


def read_folder(
    folder: Path, text_columns: tuple[str, ...] = (), required: Sequence[str] = REQUIRED_SPLITS
) -> dict[str, Table]:
    """The splits of a folder that holds `train.*`, `test.*` and optionally `validation.*`.

    Args:
        folder: files end in .parquet, .csv (comma, header line) or .jsonl (one object a line).
        text_columns: columns of csv files that stay text, so that `123` is not a number.
        required: the splits that must exist.

    Raises:
        InputError: a required split is missing, a split has two files, or a file cannot be read.
    """
    tables = {}
    for split in SPLITS:
        found = [path for path in (folder / f"{split}.{suffix}" for suffix in SUFFIXES) if path.is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise InputError(f"{folder} holds both {names}: keep one file for the {split} split")
        if found:
            tables[split] = Table(str(found[0]), _read_file(found[0], text_columns), folder)
    _require(required, tables, f"the folder {folder}")
    return tables


def read_table(path: Path, text_columns: tuple[str, ...] = ()) -> Table:
    """One .parquet, .csv or .jsonl file of any name.

    Raises:
        InputError: it cannot be read, or has another ending.
    """
    if not path.is_file() or path.suffix[1:] not in SUFFIXES:
        raise InputError(f"{path} is not a file that ends in .{', .'.join(SUFFIXES)}; name one that does")
    return Table(str(path), _read_file(path, text_columns), path.parent)


def read_hub(source: str, required: Sequence[str] = REQUIRED_SPLITS) -> dict[str, Table]:
    """The splits of a data set on the Hugging Face hub (or in its local cache): `id` or `id:configuration`.

    Raises:
        InputError: the hub cannot be reached or has no such data set, or a required split is missing.
    """
    name, _, configuration = source.partition(":")
    try:
        with quiet():
            loaded = datasets.load_dataset(name, configuration or None)
    # The hub's client can raise anything, from a failed name lookup to a changed file layout; the remedy is the same.
    except Exception as error:
        raise InputError(
            f"data.source={source!r} is not a local folder, and loading it from the Hugging Face hub failed"
            f" ({type(error).__name__}: {error}); check the spelling and the network, or give a local folder"
            f" that holds train.* and test.* ({', '.join(SUFFIXES)})"
        ) from error
    tables = {split: Table(f"{source} ({split})", _undecoded(loaded[split])) for split in SPLITS if split in loaded}
    _require(required, tables, f"the data set {source} with splits {', '.join(map(str, loaded))}")
    return tables


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile the libraries that read data show no progress bars, and log errors only."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def _read_file(path: Path, text_columns: tuple[str, ...]) -> datasets.Dataset:
    # The reader's cache knows a file by its name and time stamp; in a new folder it can never be stale.
    with quiet(), tempfile.TemporaryDirectory(prefix="fftmoe-read-") as cache:
        try:
            return _READERS[path.suffix](str(path), cache, text_columns)
        # Every reader fails in its own way (parser, encoding, arrow, builder), and its reason is often a chained cause.
        except Exception as error:
            reason = str(error.__cause__ or error).strip() or type(error).__name__
            remedy = "correct the file, or write it again with a library such as pandas or datasets"
            if "invalid UTF8" in reason:
                remedy = f"save it as UTF-8, e.g. iconv -f latin1 -t utf-8 {path.name}"
            raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}; {remedy}") from error


def _read_parquet(path: str, _: str, __: tuple[str, ...]) -> datasets.Dataset:
    # Arrow reads the file, because the reader in datasets unpacks archives and creates any class of datasets that the
    # file's metadata names. Here the metadata only states which columns are labels, with their names, or images.
    table = parquet.read_table(path)
    metadata = strict_json((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    rows = datasets.Dataset(table.replace_schema_metadata(None))
    features = metadata.get("info", {}).get("features", {})
    for column in set(features) & set(rows.column_names):
        if features[column].get("_type") == "ClassLabel":
            rows = rows.cast_column(column, datasets.ClassLabel(names=features[column]["names"]))
        if features[column].get("_type") == "Image":
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows without decoding: to decode an image or a sound, datasets would fetch any address that it names."""
    for column, feature in rows.features.items():
        if getattr(feature, "decode", False):
            rows = rows.cast_column(column, type(feature)(decode=False))  # type: ignore[call-arg]
    return rows


def _read_csv(path: str, _: str, text_columns: tuple[str, ...]) -> datasets.Dataset:
    # Arrow's reader, because the reader in datasets leaves its file open, fails on a file without rows, and reads the
    # words "null" and "None" as missing values.
    table = csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text_columns, pyarrow.string())),
    )
    return datasets.Dataset.from_dict(table.to_pydict())


def _read_jsonl(path: str, cache: str, _: tuple[str, ...]) -> datasets.Dataset:
    with open(path, "rb") as file:  # datasets would unpack an archive of this name
        if not file.read(MAX_LEADING_SPACE).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            raise ValueError("it does not begin with an object")
    return _loaded(datasets.Dataset.from_json(path, cache_dir=cache, keep_in_memory=True))


def _loaded(rows: object) -> datasets.Dataset:
    assert isinstance(rows, datasets.Dataset)  # the readers' declared type covers streaming, which is off
    return rows


_READERS = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}


def _require(required: Sequence[str], tables: dict[str, Table], what: str) -> None:
    missing = [split for split in required if split not in tables]
    if missing:
        files = " and ".join(f"{split}.parquet (or .csv, .jsonl)" for split in missing)
        present = ", ".join(sorted(tables)) or "none"
        raise InputError(
            f"{what} has no {' and no '.join(missing)} split (it has {present}); data.source needs"
            f" {' and '.join(required)}: add {files} to a local folder and name that folder"
        )
