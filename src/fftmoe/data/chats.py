"""Reads conversations: lists of messages, of which the last is the answer that a language model learns.

The messages before it become the prompt: as they are for a tokenizer with a chat template, and as plain text for one
without. In a table a prompt is a text, so several messages are written as JSON, in a text of a type of its own: a
prompt that only looks like such JSON is what one user said, or a row could speak as the system. A column of
conversations is turned into prompts and answers only where these are asked for: any other recipe leaves it alone,
whatever is in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.strict import json_text, strict_json

CHATS = ("messages", "conversations", "conversation")
"""Usual names of a column of conversations."""
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
PRODUCED = frozenset({"prompt", "completion"})
Messages = list[dict[str, str]]


class Conversation(str):
    """Is a prompt of several messages, as JSON."""


def with_answers(table: Table) -> Table:
    """Add the columns `prompt` and `completion` to a table with a column of conversations; others stay as they are.

    A message is `{"role": …, "content": …}`, or `{"from": …, "value": …}`.

    Raises:
        InputError: a conversation is no list of such messages, or does not end with an answer after a question.
    """
    column = _column_of(table)
    if column is None or PRODUCED & {*table.columns}:
        return table
    rows = [
        _answered(value, f"{table.where}, row {table.origin.row(place)}", column)
        for place, value in enumerate(table.columns[column])
    ]
    prompts, completions = map(list, zip(*rows, strict=True))
    columns = {name: values for name, values in table.columns.items() if name != column}
    return replace(table, columns={**columns, "prompt": prompts, "completion": completions})


def holds_conversations(table: Table) -> bool:
    """Return whether prompts and answers can be asked for that the table has as conversations, by its first row."""
    column = _column_of(table)
    first = None if column is None else table.columns[column][0][0]
    said = [set(pair) <= set(first or ()) for pair in (("role", "content"), ("from", "value"))]
    return any(said) and not PRODUCED & {*table.columns}


def messages_of(prompt: str) -> Messages:
    """Return the messages of a prompt; any prompt but a `Conversation` is one message of a user."""
    return _written(prompt) or [{"role": "user", "content": prompt}]


def prompt_of(messages: Messages) -> Conversation:
    """Return the prompt that asks for the next message; see `messages_of`."""
    return Conversation(json_text({CHATS[0]: messages}))


def plain_prompt(prompt: str) -> str:
    """Return a prompt as text, for a model without a chat template:
    several messages each with the name of their role.
    """
    messages = _written(prompt)
    if messages is None:
        return prompt
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant: "])


def _written(prompt: str) -> Messages | None:
    """Return the messages of a conversation; None for any other text."""
    return strict_json(prompt)[CHATS[0]] if isinstance(prompt, Conversation) else None


def _column_of(table: Table) -> str | None:
    """Return the column that may hold conversations."""
    return next((name for name in CHATS if name in table.columns and holds_messages(table.columns[name])), None)


def holds_messages(values: Sequence[Any]) -> bool:
    """Return whether a column holds lists of messages, by its first value."""
    first = next(iter(values), None)
    return isinstance(first, list) and bool(first) and isinstance(first[0], dict)


def _answered(value: Any, where: str, column: str) -> tuple[str, str]:
    """Return the prompt and the completion of a conversation."""
    remedy = f"correct the conversation in column {column!r}, or remove the row"
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(f"{where}: a conversation has a question and an answer, and this one has not; {remedy}")
    messages = [checked_message(message, where, remedy) for message in value]
    *asked, answer = messages
    if answer["role"] != "assistant" or asked[-1]["role"] != "user":
        raise InputError(
            f"{where}: a conversation ends with a user's message and the assistant's answer, from which a model learns;"
            f" this one ends with {asked[-1]['role']} and {answer['role']}; {remedy}"
        )
    return (asked[0]["content"] if len(asked) == 1 else prompt_of(asked)), answer["content"]


def checked_message(value: Any, where: str, remedy: str) -> dict[str, str]:
    """Return a message as its role and its content.

    Args:
        where: the row, for the message. remedy: what to do, likewise.

    Raises:
        InputError: it is no message.
    """
    role, content = (
        (value.get("role", value.get("from")), value.get("content", value.get("value")))
        if isinstance(value, dict)
        else (None, None)
    )
    if not isinstance(role, str) or role.lower() not in ROLES or not isinstance(content, str):
        raise InputError(
            f"{where}: a message has a role ({', '.join(ROLES)}) and a text as its content, and one has not; {remedy}"
        )
    return {"role": ROLES[role.lower()], "content": content}
