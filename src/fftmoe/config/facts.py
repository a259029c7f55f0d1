"""Collects what the rules of `defaults.py` know about a data set,
which is read only if a recipe leaves them something.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fftmoe.config.backbone import READS_LISTS
from fftmoe.config.text_lengths import SampledTexts
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from fftmoe.data import Table
    from fftmoe.data.sources import ReadAhead

SPARED = 0.8  # of the rows of a source that still has to be divided


@dataclass(frozen=True)
class Facts:
    """Describes a data set in numbers.

    Attributes:
        task: the task that its columns are for. columns: by key of the recipe, such as `data.text`.
        rows: the number of training rows.
        classes: the number of distinct labels in them; 0 for a task without labels.
        texts: some of them, for the tokenizer that counts their tokens.
        read_ahead: the tables that were read.
        client_column: the column that names the clients; None if there is none. clients: how many it names.
    """

    task: str
    columns: Mapping[str, str]
    rows: int
    classes: int
    texts: SampledTexts
    read_ahead: "ReadAhead" = field(repr=False, compare=False)
    client_column: str | None
    clients: int | None


def read_facts(
    source: str,
    named: Mapping[str, str],
    task: str | None,
    by: str | None,
    encoding: str | None = None,
    separator: str | None = None,
) -> Facts:
    """Read a source, and count.

    Args:
        encoding: the recipe's `data.encoding`. separator: its `data.list_separator`.
        named: the columns that the recipe names, by key. task: the recipe's, or None. by: the recipe's `partition.by`.

    Raises:
        InputError: the source cannot be read, or no column looks like what the task needs.
    """
    from fftmoe.data.list_cells import ListCells, divided_columns
    from fftmoe.data.prompts_asked import with_prompts
    from fftmoe.data.roles import guess_roles
    from fftmoe.data.sources import ReadAhead, read_raw, training_rows
    from fftmoe.data.text_encodings import TextEncoding
    from fftmoe.data.undivided import CLIENT

    raw = read_raw(source, TextEncoding(encoding))
    table, divided = training_rows(raw)
    if not table.num_rows:
        raise InputError(f"{table.where} has no rows; every split needs at least one")
    client = by or (CLIENT if CLIENT in table.columns else None)
    if separator is not None and task in (None, *READS_LISTS):
        divided = divided_columns(table, named, separator, client)
        table, named = ListCells([*divided.values()], separator).read(table), {**divided, **named}
    table = with_prompts(table, named, task)
    roles = guess_roles(table, named, task, client)
    return Facts(
        task=roles.task,
        columns=roles.columns,
        rows=table.num_rows if divided else round(SPARED * table.num_rows),
        classes=len(_distinct_names(table, roles.columns.get("data.label") or roles.columns.get("data.tags"))),
        texts=SampledTexts.of(table, roles.columns),
        read_ahead=ReadAhead(raw),
        client_column=client if client in table.columns else None,
        clients=len(_distinct_names(table, client)) if client in table.columns else None,
    )


def _distinct_names(table: "Table", column: str | None) -> set[str]:
    """Return the distinct names in a column, or in its lists. What is no name counts by its spelling;
    it is refused later.
    """
    from fftmoe.data.columns import spelled

    values: Sequence[Any] = spelled(table, column) if column else ()
    items = (item for value in values for item in (value if isinstance(value, list) else [value]))
    return {item if isinstance(item, str) else repr(item) for item in items}
