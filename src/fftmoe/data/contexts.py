"""Joins instructions with the text that they are about, which some tables have in a column of its own.

A prompt without it asks about a text that the model never sees. As with conversations, the columns `prompt` and
`completion` are made only where they are asked for and the table has none.
"""

from dataclasses import replace
from typing import Any

from fftmoe.data.chats import PRODUCED
from fftmoe.data.table import Table
from fftmoe.data.usual_names import first_of
from fftmoe.errors import InputError

INSTRUCTIONS = ("instruction",)
CONTEXTS = ("input", "context")
ANSWER_COLUMNS = ("output", "response")


def holds_contexts(table: Table) -> bool:
    """Return whether a table has instructions, answers, and a text for some of the instructions, and no prompts."""
    context = first_of(list(table.columns), CONTEXTS)
    whole = all(first_of(list(table.columns), names) for names in (INSTRUCTIONS, ANSWER_COLUMNS))
    free = not PRODUCED & {*table.columns}
    return free and whole and context is not None and any(map(_is_said, table.columns[context]))


def with_joined_prompts(table: Table) -> Table:
    """Add the column `prompt`, an instruction with its text below it, and `completion` where the table has answers.

    A table without instructions, or with such columns, stays as it is.

    Raises:
        InputError: what stands in the column of texts is no text.
    """
    instruction, context, answer = (
        first_of(list(table.columns), own) for own in (INSTRUCTIONS, CONTEXTS, ANSWER_COLUMNS)
    )
    if instruction is None or context is None or PRODUCED & {*table.columns}:
        return table
    prompts = [
        _joined(asked, about, f"{table.where}: column {context!r}, row {table.origin.row(place)}")
        for place, (asked, about) in enumerate(zip(table.columns[instruction], table.columns[context], strict=True))
    ]
    answers = {} if answer is None else {"completion": table.columns[answer]}
    return replace(table, columns={**table.columns, "prompt": prompts, **answers})


def _is_said(value: Any) -> bool:
    """Return whether a value is no empty cell."""
    return value is not None and (not isinstance(value, str) or bool(value.strip()))


def _joined(asked: Any, about: Any, where: str) -> Any:
    """Return one prompt; an instruction that is no text stays as it is, and whoever reads the column names it."""
    if not _is_said(about) or not isinstance(asked, str):
        return asked
    if not isinstance(about, str):
        raise InputError(f"{where} holds {about!r:.50}, which is not a text; correct the row, or remove it")
    return f"{asked}\n\n{about}"
