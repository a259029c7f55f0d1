"""Says how a run writes prompts."""

from fftmoe.backbones import load_tokenizer
from fftmoe.data import template_fault
from fftmoe.errors import InputError


def prompt_form(prompt_column: str | None, chat_template: bool, model: str) -> str | None:
    """Say how the prompts of a run are written.

    Args:
        prompt_column: of the run's recipe. chat_template: likewise. model: the backbone, whose tokenizer is read.

    Returns:
        a line for a person; None without prompts, and where a run cannot begin so.
    """
    if prompt_column is None:
        return None
    try:
        fault = template_fault(load_tokenizer(model))
    except InputError:  # whoever uses the model says what is wrong with it
        return None
    if chat_template:
        written = f"prompts: messages, written with the chat template of {model} (data.chat_template=true)"
        return written if fault is None else None
    why = "can write them as messages (data.chat_template=true)" if fault is None else fault
    return f"prompts: plain text (data.chat_template=false); the tokenizer of {model} {why}"
