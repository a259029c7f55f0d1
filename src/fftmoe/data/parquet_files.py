"""Reads Parquet: typed columns. A file's own notes say which columns are numbers of classes, and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow
from pyarrow import parquet

from fftmoe.data.names import distinct_names
from fftmoe.errors import InputError
from fftmoe.strict import strict_json

ROWS_CONVERTED = 1024  # rows that exist as Python values at a time
_LISTS = ("List", "LargeList", "Sequence")


class ParquetColumn(Sequence[Any]):
    """Gives the values of a column, made from Arrow's when they are read:
    a column of images may be larger than memory.
    """

    def __init__(self, where: str, values: pyarrow.ChunkedArray) -> None:
        self._where = where
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, int):
            return self._converted(range(len(self))[place], 1)[0]
        start, stop, step = place.indices(len(self))
        return self._converted(start, max(0, stop - start)) if step == 1 else list(self)[place]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._values), ROWS_CONVERTED):
            yield from self._converted(start, ROWS_CONVERTED)

    def _converted(self, start: int, number: int) -> list[Any]:
        try:
            return self._values.slice(start, number).to_pylist()
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError) as error:
            raise InputError(
                f"{self._where} has values of type {self._values.type} that cannot be read ({error}); write the "
                "column as texts or numbers"
            ) from error


ParquetContents = tuple[Mapping[str, ParquetColumn], int, dict[str, tuple[str, ...]]]


def read_parquet(path: Path) -> ParquetContents:
    """Return the columns of a parquet file, the number of its rows, and the names of classes by column.

    Raises:
        ValueError, OSError or pyarrow.ArrowException: it is not such a file.
    """
    return read_parquet_parts(str(path), [path])


def read_parquet_parts(where: str, paths: Sequence[Path]) -> ParquetContents:
    """Return the same of a table that is stored in several files; `where` is their origin, for messages."""
    table = pyarrow.concat_tables([_arrow_table(path) for path in paths])
    distinct_names(table.column_names, "columns")
    features = _features((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    columns = {
        name: ParquetColumn(f"{where}: column {name!r}", values)
        for name, values in zip(table.column_names, table.columns, strict=True)
    }
    names = {column: _class_names(column, features[column]) for column in columns if column in features}
    return columns, table.num_rows, {column: own for column, own in names.items() if own}


def _arrow_table(path: Path) -> pyarrow.Table:
    # An opened file and not its name, which a library could take for an address or for the keys of a partition.
    with pyarrow.OSFile(str(path)) as file:
        table = parquet.ParquetFile(file).read()
    table.validate(full=True)  # the lengths and encodings that the file claims
    return table


def _features(notes: bytes) -> Mapping[str, Any]:
    """Return what the library `datasets` notes in a file about its columns, `{"info": {"features": {column: …}}}`."""
    found: Any = strict_json(notes)
    for name in ("info", "features"):
        found = found.get(name)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise ValueError(
                f"its notes on columns have {found!r:.50} as {name!r}, which is no object; write the file again"
            )
    return found


def _class_names(column: str, feature: Any) -> tuple[str, ...]:
    """Return the names of the classes that a column, or the lists in it, refer to by number; none if they do not."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(column, feature[0])
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") in _LISTS:
        return _class_names(column, feature.get("feature"))
    if feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the classes of column {column!r} have no list of texts as names; write the file again")
    distinct_names(names, f"classes of column {column!r}")
    return tuple(names)
