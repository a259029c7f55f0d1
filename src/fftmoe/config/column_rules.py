"""Finds the defaults of a recipe that say what its data is: the task, its columns, and the length of its texts."""

from typing import Any

from fftmoe.config.known import LEFT_OUT, Known, Rule
from fftmoe.config.text_lengths import Reading, long_text
from fftmoe.errors import InputError

NAMED_FOR = {
    "data.targets": "regression",
    "data.chosen": "preference",
    "data.prompt": "causal-lm",
    "data.image": "image-classification",
    "data.tags": "token-classification",
}
"""The tasks that a recipe asks for by naming these columns."""
READ_BY = {
    "sequence-classification": ("data.text", "data.label"),
    "multi-label-classification": ("data.text", "data.label"),
    "regression": ("data.targets", "data.text"),
    "image-classification": ("data.image", "data.label"),
    "token-classification": ("data.tokens", "data.tags"),
}
"""The columns that each task needs."""
STEP = 16  # `data.max_length` is a multiple of it
MOST_TOKENS, MOST_WRITTEN = 128, 512  # its largest value; that for a language model, which reads a prompt as well
UNCUT, UNCUT_WRITTEN = 90, 99  # per cent of the texts that it leaves whole: a prompt loses its beginning, and its sense


def task_of(known: Known) -> str:
    """Return the task that the named columns are for, else that of the data."""
    for key, task in NAMED_FOR.items():
        if known.get(key) is not None:
            return task
    named = known.get("data.text") is not None and known.get("data.label") is not None
    if named and known.get("data.list_separator") is not None:
        return "multi-label-classification"
    if named and not known.lacks("data.max_length"):  # texts are not read for another key
        return "sequence-classification"
    return known.facts.task if known.facts else "sequence-classification"


def column(key: str) -> Rule:
    """Return the rule for a column of a labelled text or image; `key` is that of the recipe."""

    def value(known: Known) -> Any:
        if key not in READ_BY.get(known.task, ()) or known.facts is None:
            return LEFT_OUT
        return known.facts.columns.get(key, LEFT_OUT)

    return Rule(key, value, "the column that looks like it, by its name, its type or the length of its texts")


def targets() -> Rule:
    """Return the rule for the columns of numbers."""

    def value(known: Known) -> Any:
        if known.task != "regression" or known.facts is None or "data.targets" not in known.facts.columns:
            return LEFT_OUT
        return [known.facts.columns["data.targets"]]

    says = "the column of numbers with fractions that stands where labels would, or that `data.label` names"
    return Rule("data.targets", value, says)


def language_column(key: str) -> Rule:
    """Return the rule for a column that a language model reads."""

    def value(known: Known) -> Any:
        named = known.get("data.chosen") or known.get("data.prompt") or known.get("data.text")
        if not known.is_language or (named and not known.has_facts) or known.facts is None:
            return LEFT_OUT
        return known.facts.columns.get(key, LEFT_OUT)

    pairs = "chosen and rejected with their prompt"
    says = f"the columns of usual names: {pairs}; or a pair such as prompt and completion, else one of texts"
    return Rule(key, value, says)


def chat_template(known: Known) -> Any:
    """Return whether prompts are written as messages: where the model has a template for them that can be used."""
    model = known.get("backbone.model")
    if not known.is_language or known.get("data.prompt") is None or not isinstance(model, str):
        return LEFT_OUT
    return known.may_load and _writes_chats(model)


def _writes_chats(model: str) -> bool:
    from fftmoe.backbones import load_tokenizer
    from fftmoe.data import template_fault

    try:
        return template_fault(load_tokenizer(model)) is None
    except InputError:  # the run will say what is wrong with the model
        return False


def max_length(known: Known) -> Any:
    """Return the number of tokens that nearly all texts do not exceed, up to a limit and to what the model can read."""
    model = known.get("backbone.model")
    if known.task == "image-classification" or known.facts is None or not isinstance(model, str):
        return LEFT_OUT
    written = known.get("evaluation.generate.max_new_tokens", 0)
    completes = known.is_language
    reading = Reading(
        model,
        completes,
        chat_template=known.get("data.chat_template") is True,
        most=MOST_WRITTEN if completes else MOST_TOKENS,
        spared=written if isinstance(written, int) else 0,
        percent=UNCUT_WRITTEN if completes else UNCUT,
    )
    return long_text(known.facts.texts, reading, STEP)
