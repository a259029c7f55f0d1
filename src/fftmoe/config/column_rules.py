"""The defaults of a recipe that say what its data is: the task, its columns, and the length of its texts."""

from typing import Any

from fftmoe.config.known import LEFT_OUT, Known, Rule

NAMED_FOR = {
    "data.targets": "regression",
    "data.prompt": "causal-lm",
    "data.image": "image-classification",
    "data.tags": "token-classification",
}
"""The tasks that a recipe asks for by naming these columns."""
READ_BY = {
    "sequence-classification": ("data.text", "data.label"),
    "multi-label-classification": ("data.text", "data.label"),
    "regression": ("data.text",),
    "image-classification": ("data.image", "data.label"),
    "token-classification": ("data.tokens", "data.tags"),
}
"""The columns that each task needs."""
MOST_TOKENS, STEP = 128, 16  # tokens: the largest `data.max_length`, and its multiples


def task_of(known: Known) -> str:
    """The task that the named columns are for, else that of the data."""
    for key, task in NAMED_FOR.items():
        if known.get(key) is not None:
            return task
    if known.get("data.text") is not None and known.get("data.label") is not None:
        return "sequence-classification"
    return known.facts.task if known.facts else "sequence-classification"


def column(key: str) -> Rule:
    """The rule for a column of a labelled text or image; `key` is that of the recipe."""

    def value(known: Known) -> Any:
        if key not in READ_BY.get(known.task, ()) or known.facts is None:
            return LEFT_OUT
        return known.facts.columns.get(key, LEFT_OUT)

    return Rule(key, value, "the column that looks like it, by its name, its type or the length of its texts")


def language_column(key: str) -> Rule:
    """The rule for a column that a language model reads."""

    def value(known: Known) -> Any:
        named = known.get("data.prompt") or known.get("data.text")
        if known.task != "causal-lm" or (named and not known.has_facts) or known.facts is None:
            return LEFT_OUT
        return known.facts.columns.get(key, LEFT_OUT)

    return Rule(key, value, "the columns of a usual pair of names, such as prompt and completion, else one of texts")


def max_length(known: Known) -> Any:
    """The number of tokens that nine texts in ten do not exceed, up to `MOST_TOKENS`."""
    if known.task == "image-classification" or known.facts is None:
        return LEFT_OUT
    return min(MOST_TOKENS, STEP * -(-known.facts.tokens // STEP))
