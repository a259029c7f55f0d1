"""Makes the prompts and answers that a recipe asks for, of the columns that a table has in their place."""

from collections.abc import Iterable, Mapping

from fftmoe.data.chats import CHATS, PRODUCED, holds_conversations, with_answers
from fftmoe.data.contexts import ANSWER_COLUMNS, CONTEXTS, INSTRUCTIONS, holds_contexts, with_joined_prompts
from fftmoe.data.paired_chats import with_plain_pairs
from fftmoe.data.table import Table
from fftmoe.data.usual_names import (
    CHOSEN,
    COMPLETION,
    LABEL,
    LABEL_NAMES,
    PREFERRED,
    PROMPT,
    PROMPT_NAMES,
    REJECTED,
    TEXT,
    TEXT_NAMES,
    first_of,
    single_columns,
)

MADE_OF = (*CHATS, *INSTRUCTIONS, *CONTEXTS, *ANSWER_COLUMNS)
"""Usual names of the columns that prompts and answers are made of."""


def with_prompts(table: Table, named: Mapping[str, str], task: str | None = None) -> Table:
    """Return the table with prompts and answers, where the recipe asks for these, or for pairs.

    They are made of conversations, or of instructions and the texts that these are about.

    The recipe asks for them if it names their columns, or if it names no column and its task is that of a language
    model. A recipe that says nothing asks for them if the table has no text and label of usual names.

    Args:
        named, task: see `roles.guess_roles`.

    Raises:
        InputError: a conversation, or a text beside an instruction, cannot be used.
    """
    if asks_for_pairs(table, named, task):
        prompt = named.get(PROMPT) or first_of(list(table.columns), PROMPT_NAMES) or "prompt"
        return with_plain_pairs(table, prompt, named.get(CHOSEN, "chosen"), named.get(REJECTED, "rejected"))
    read = {TEXT, PROMPT, COMPLETION} & {*named} if task == "causal-lm" else {*named}
    labelled = first_of(single_columns(table, list(table.columns)), TEXT_NAMES) and (
        first_of(list(table.columns), ("labels", *LABEL_NAMES))
    )
    can_be_made = holds_conversations(table) or holds_contexts(table)
    if task in (None, "causal-lm") and not read and can_be_made and (task or not labelled):
        return with_columns_asked(table, PRODUCED)
    return with_columns_asked(table, [named[key] for key in (PROMPT, COMPLETION) if key in named])


def with_columns_asked(table: Table, asked: Iterable[str]) -> Table:
    """Return the same table, with prompts and answers if these are asked for and it has none.

    Args:
        asked: names of columns.

    Raises:
        InputError: see `with_answers` and `with_joined_prompts`.
    """
    return with_joined_prompts(with_answers(table)) if PRODUCED & {*asked} - {*table.columns} else table


def asks_for_pairs(table: Table, named: Mapping[str, str], task: str | None) -> bool:
    """Return whether a recipe is about pairs of answers, by its task, by their names, or by usual names of columns."""
    if task is not None or CHOSEN in named:
        return task in (None, "preference")
    return set(PREFERRED) <= set(table.columns) and not {TEXT, LABEL, COMPLETION} & {*named}
