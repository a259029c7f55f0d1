"""Tables of tasks without classes, and what divides their examples: the strata that a partition and a metric go by."""

from collections.abc import Mapping, Sequence

import numpy as np

from fftmoe.data.read import Table
from fftmoe.data.sources import WHOLE, Wanted, read_source, require_column, values_of

ALL = ("all",)  # the one stratum where nothing divides the examples


def stratified_tables(
    source: str,
    content: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    strata: Sequence[str],
    extra_columns: Sequence[str],
    wanted: Wanted = WHOLE,
) -> tuple[dict[str, Table], dict[str, np.ndarray], tuple[str, ...]]:
    """A source's tables, with every column there; its contents are not looked at.

    Args:
        source: as `load_source`.
        content: the columns that hold the examples, by the recipe's key for them ("data.text").
        texts: those of them that hold texts.
        strata: columns of which the first that every split has divides the examples.
        extra_columns: further columns that the first needed split must have.

    Returns:
        the tables and the strata, int64 [N], by split; and the strata's names, those of all splits, sorted.

    Raises:
        InputError: the source, a file or a column is missing.
    """
    tables = read_source(source, tuple(texts), wanted.needed)
    if wanted.alone:
        tables = {split: tables[split] for split in wanted.needed}
    columns = [column for own in content.values() for column in own]
    for split, table in tables.items():
        further = extra_columns if split == wanted.needed[0] else ()  # who holds a test row is no question
        for column in dict.fromkeys((*columns, *further)):
            require_column(table, column, [*content, "partition.by"])
    shared = [column for column in strata if all(column in table.rows.column_names for table in tables.values())]
    if not shared:
        return tables, {name: np.zeros(table.rows.num_rows, np.int64) for name, table in tables.items()}, ALL
    values = {name: list(map(str, values_of(table, shared[0]))) for name, table in tables.items()}
    names = tuple(sorted({value for own in values.values() for value in own}))
    number = {name: place for place, name in enumerate(names)}
    return tables, {name: np.array([number[v] for v in own], dtype=np.int64) for name, own in values.items()}, names
