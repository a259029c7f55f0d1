"""Guesses what the columns of a table hold, from their names and values: texts, labels, prompts, images, tags.

`fftmoe init` and a recipe that leaves its columns out guess alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fftmoe.data.chats import holds_conversations, with_answers, with_columns_asked
from fftmoe.data.columns import check_column, plain_columns
from fftmoe.data.image_folders import IMAGE_SUFFIXES
from fftmoe.data.paired_chats import with_plain_pairs
from fftmoe.data.table import Table
from fftmoe.errors import InputError

TEXT_NAMES = ("text", "sentence", "content", "note", "message", "question", "review", "utterance")
LABEL_NAMES = ("label", "class", "category", "intent", "target")
ANSWER_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
PROMPT_NAMES = ("prompt", "question", "instruction", "input", "query")
PREFERRED = ("chosen", "rejected")
TAG_NAMES = ("tags", "ner_tags")
LANGUAGE_TASKS = ("causal-lm", "preference")
"""The tasks of a language model, which continues texts and has no head."""
MAX_LABELS = 200
LOOKED_AT = 100  # values that decide the type of a column
TEXT, IMAGE, LABEL, PROMPT, COMPLETION, CHOSEN, REJECTED, TOKENS, TAGS = (
    f"data.{name}"
    for name in ("text", "image", "label", "prompt", "completion", "chosen", "rejected", "tokens", "tags")
)


@dataclass(frozen=True)
class Roles:
    """Names the task that a table is for, and its columns by the key of the recipe that names them."""

    task: str
    columns: Mapping[str, str]


def with_prompts(table: Table, named: Mapping[str, str], task: str | None = None) -> Table:
    """Return the table with prompts and answers from its conversations, where the recipe asks for these, or for pairs.

    The recipe asks for them if it names their columns, or if it names no column and its task is that of a language
    model. A recipe that says nothing asks for them if the table has no text and label of usual names.

    Args:
        named, task: see `guess_roles`.

    Raises:
        InputError: a conversation cannot be used.
    """
    if _asks_for_pairs(table, named, task):
        prompt = named.get(PROMPT) or _first(list(table.columns), PROMPT_NAMES) or "prompt"
        return with_plain_pairs(table, prompt, named.get(CHOSEN, "chosen"), named.get(REJECTED, "rejected"))
    read = {TEXT, PROMPT, COMPLETION} & {*named} if task == "causal-lm" else {*named}
    labelled = _first(_single(table, list(table.columns)), TEXT_NAMES) and (
        _first(list(table.columns), ("labels", *LABEL_NAMES))
    )
    if task in (None, "causal-lm") and not read and holds_conversations(table) and (task or not labelled):
        return with_answers(table)
    return with_columns_asked(table, [named[key] for key in (PROMPT, COMPLETION) if key in named])


def _asks_for_pairs(table: Table, named: Mapping[str, str], task: str | None) -> bool:
    """Return whether a recipe is about pairs of answers, by its task, by their names, or by usual names of columns."""
    if task is not None or CHOSEN in named:
        return task in (None, "preference")
    return set(PREFERRED) <= set(table.columns) and not {TEXT, LABEL, COMPLETION} & {*named}


def guess_roles(table: Table, named: Mapping[str, str], task: str | None = None, by: str | None = None) -> Roles:
    """Guess the task, and the columns that the recipe does not name.

    In this order: chosen and rejected answers; prompts with completions; lists of tokens with lists of tags; images
    with labels; texts with lists of labels; texts with labels.

    Args:
        named: columns by key, as the recipe names them. task: the recipe's task; None to guess it.
        by: the column that names the clients, which has no other role.

    Raises:
        InputError: a column that the recipe names is missing, or no column looks like what the task needs.
    """
    for key, column in named.items():
        check_column(table, column, [key])
    task = task or _guess_task(table, named, by)
    if task == "causal-lm":
        return Roles(task, _of_language(table, named))
    if task == "preference":
        return Roles(task, _of_preference(table, named))
    free = [column for column in table.columns if column not in (*named.values(), by)]
    found: dict[str, str] = {}
    for key in _KEYS[task]:
        if key not in named:
            found[key] = _GUESS[key](table, [column for column in free if column not in found.values()])
    return Roles(task, {**named, **found})


def _guess_task(table: Table, named: Mapping[str, str], by: str | None) -> str:
    if _asks_for_pairs(table, named, None):
        return "preference"
    if PROMPT in named or _pair(table):
        return "causal-lm"
    if TAGS in named or _lists(table, TAG_NAMES):
        return "token-classification"
    if IMAGE in named or _image_columns(table):
        return "image-classification"
    label = named.get(LABEL)
    if label in table.columns and _holds_lists(table, str(label)):
        return "multi-label-classification"
    if label is None and _lists(table, ("labels", *LABEL_NAMES)):
        return "multi-label-classification"
    return "sequence-classification"


_KEYS: Mapping[str, tuple[str, ...]] = {
    "sequence-classification": (LABEL, TEXT),
    "multi-label-classification": (LABEL, TEXT),
    "regression": (TEXT,),
    "image-classification": (IMAGE, LABEL),
    "token-classification": (TAGS, TOKENS),
}


def _of_language(table: Table, named: Mapping[str, str]) -> Mapping[str, str]:
    """Return the columns of a language model: a pair of prompt and completion, else one of texts."""
    if PROMPT in named or TEXT in named:
        return named
    if pair := _pair(table):
        return {**named, PROMPT: pair[0], COMPLETION: pair[1]}
    return {**named, TEXT: guess_text(table, list(plain_columns(table)))}


def _of_preference(table: Table, named: Mapping[str, str]) -> Mapping[str, str]:
    """Return the columns of a prompt and its two answers.

    Raises:
        InputError: a column that is not named has no usual name.
    """
    usual = {PROMPT: PROMPT_NAMES, CHOSEN: ("chosen",), REJECTED: ("rejected",)}
    found = dict(named)
    for key, names in usual.items():
        if key in named:
            continue
        column = _first(list(table.columns), names)
        if column is None:
            raise InputError(
                f"{table.where}: no column is called {' or '.join(names)} (it has {', '.join(table.columns)}); a "
                f"preference has a prompt, a chosen and a rejected answer: name the column with {key}"
            )
        found[key] = column
    return found


def guess_label(table: Table, free: Sequence[str]) -> str:
    """Return the column with a common name for labels, else the one with the fewest values, but at least two.

    Raises:
        InputError: no column looks like labels.
    """
    lists = [column for column in free if _holds_lists(table, column)]
    if named := _first(lists, ("labels", *LABEL_NAMES)):
        return named
    if named := _first(_single(table, free), LABEL_NAMES):
        return named
    plain = {column: values for column, values in plain_columns(table).items() if column in free}
    counts = {column: len(set(values)) for column, values in plain.items()}
    most = min(MAX_LABELS, table.num_rows // 2)
    possible = [column for column in plain if 2 <= counts[column] <= most]
    if not possible:
        shown = ", ".join(f"{column} ({number} values)" for column, number in counts.items()) or "its columns"
        raise InputError(
            f"{table.where}: no column looks like labels among {shown}; name it with data.label (--label), or for a "
            "language model name its texts with data.text and set backbone.task=causal-lm. The columns of a CSV file "
            "are separated by commas, semicolons, tabs or vertical bars"
        )
    return min(possible, key=lambda column: counts[column])


def guess_text(table: Table, free: Sequence[str]) -> str:
    """Return the column with a common name for texts, else the one with the most characters.

    Raises:
        InputError: no column holds texts.
    """
    if named := _first(_single(table, free), TEXT_NAMES):
        return named
    plain = {column: values for column, values in plain_columns(table).items() if column in free}
    if not plain:
        raise InputError(
            f"{table.where}: no column is left for the texts (it has {', '.join(table.columns)}); name one with "
            "data.text (--text)"
        )
    return max(plain, key=lambda column: sum(map(len, plain[column])))


def _guess_image(table: Table, free: Sequence[str]) -> str:
    found = [column for column in _image_columns(table) if column in free]
    if not found:
        raise InputError(f"{table.where}: no column holds images or the paths of images; name it with data.image")
    return found[0]


def _guess_tags(table: Table, free: Sequence[str]) -> str:
    return _guess_lists(table, free, TAG_NAMES, TAGS)


def _guess_tokens(table: Table, free: Sequence[str]) -> str:
    return _guess_lists(table, free, ("tokens", "words"), TOKENS)


def _guess_lists(table: Table, free: Sequence[str], names: Sequence[str], key: str) -> str:
    found = _first([column for column in free if _holds_lists(table, column)], names)
    if found is None:
        raise InputError(
            f"{table.where}: no column of lists is called {' or '.join(names)} (it has {', '.join(table.columns)}); "
            f"name it with {key}"
        )
    return found


_GUESS = {
    LABEL: guess_label,
    TEXT: guess_text,
    IMAGE: _guess_image,
    TAGS: _guess_tags,
    TOKENS: _guess_tokens,
}


def _pair(table: Table) -> tuple[str, str] | None:
    """Return the columns of prompts and completions, where both have a usual name."""
    return next((pair for pair in ANSWER_PAIRS if set(pair) <= set(table.columns)), None)


def _image_columns(table: Table) -> list[str]:
    """Return the columns that hold images, or paths of image files."""
    return [column for column in table.columns if _holds_images(table.columns[column][:LOOKED_AT])]


def _holds_images(values: Sequence[Any]) -> bool:
    return bool(len(values)) and all(
        isinstance(value, bytes)
        or (isinstance(value, dict) and "bytes" in value)
        or (isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES))
        for value in values
    )


def _lists(table: Table, names: Sequence[str]) -> str | None:
    """Return the column of lists with one of these names."""
    return _first([column for column in table.columns if _holds_lists(table, column)], names)


def _holds_lists(table: Table, column: str) -> bool:
    """Return whether a column holds lists of names."""
    values = table.columns[column][:LOOKED_AT]
    return bool(len(values)) and all(
        isinstance(value, list) and not any(isinstance(item, list) for item in value) for value in values
    )


def _single(table: Table, columns: Sequence[str]) -> list[str]:
    """Return those of the columns that hold single values, also values that cannot be read:
    their names say what they are.
    """
    several = (list, tuple, dict, bytes, type(None))
    return [column for column in columns if any(not isinstance(value, several) for value in table.columns[column])]


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of the columns whose name, in any case, is a usual one, in the order of the names."""
    return next((column for name in names for column in columns if column.lower() == name), None)
