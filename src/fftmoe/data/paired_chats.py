"""Reads pairs of conversations: what they have in common becomes the prompt, and their last messages are the two
answers.

Data sets of preferences have them in three forms: two conversations that differ in their last message; a prompt of
messages with two answers of one message each; and texts, which stay as they are.
"""

from dataclasses import replace
from typing import Any

from fftmoe.data.chats import Messages, checked_message, holds_messages, prompt_of
from fftmoe.data.table import Table
from fftmoe.errors import InputError


def with_plain_pairs(table: Table, prompt: str, chosen: str, rejected: str) -> Table:
    """Return the table with texts in the place of conversations in these columns.

    Args:
        prompt: the column of prompts; it is written where the conversations hold the prompt. chosen, rejected: those of
            the answers.

    Raises:
        InputError: a conversation is no list of messages, does not end with an answer, or is not about the same prompt
            as the other one of its row.
    """
    pair = [table.columns.get(name, ()) for name in (chosen, rejected)]
    if any(map(holds_messages, pair)):
        asked = table.columns.get(prompt)
        rows = [
            _plain(None if asked is None else asked[place], first, second, f"{table.where}, row {name}")
            for place, (first, second) in enumerate(zip(*pair, strict=True))
            for name in [table.origin.row(place)]
        ]
        found = dict(zip((prompt, chosen, rejected), map(list, zip(*rows, strict=True)), strict=True))
    elif holds_messages(asked := table.columns.get(prompt, ())):
        found = {prompt: [_asked(value, f"{table.where}, row {table.origin.row(i)}") for i, value in enumerate(asked)]}
    else:
        return table
    return replace(table, columns={**table.columns, **found})


def _plain(asked: Any, first: Any, second: Any, where: str) -> tuple[Any, Any, Any]:
    """Return the prompt and both answers of a row as texts."""
    (before, good), (other, bad) = (_answered(value, where) for value in (first, second))
    if before != other:
        raise InputError(
            f"{where}: the chosen and the rejected conversation differ before their last message, so they are no two "
            "answers to one prompt; correct the conversations, or remove the row"
        )
    return (_prompt(before, where) if before else _asked(asked, where)), good, bad


def _answered(value: Any, where: str) -> tuple[Messages, Any]:
    """Return the messages before an answer, and the answer; any value but a list of messages is the answer itself."""
    if not isinstance(value, list):
        return [], value
    messages = [checked_message(message, where, REMEDY) for message in value]
    if not messages or messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: a conversation ends with the assistant's answer, and this one does not; {REMEDY}")
    return messages[:-1], messages[-1]["content"]


def _asked(value: Any, where: str) -> Any:
    """Return a prompt as a text; any value but a list of messages stays as it is."""
    if not isinstance(value, list):
        return value
    return _prompt([checked_message(message, where, REMEDY) for message in value], where)


def _prompt(messages: Messages, where: str) -> str:
    if not messages or messages[-1]["role"] != "user":
        raise InputError(f"{where}: a prompt ends with a user's message, and this one does not; {REMEDY}")
    return messages[0]["content"] if len(messages) == 1 else prompt_of(messages)


REMEDY = "correct the conversation, or remove the row"
