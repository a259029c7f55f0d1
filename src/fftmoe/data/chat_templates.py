"""Prompts and completions as the chat template of a tokenizer writes them.

A template is a small program of the model's author. transformers renders it in a sandbox that sees the messages only.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from fftmoe.data.chats import Messages, messages_of
from fftmoe.data.table import Origin
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "Which colour is the sky?", "Blue"


def template_fault(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why the prompts of a data set cannot be written with this tokenizer's chat template; None if they can.

    A question and its answer are written for a try.

    Returns:
        the end of a sentence about the tokenizer, such as "has no chat template".
    """
    if not tokenizer.chat_template:
        return "has no chat template"
    asked = messages_of(_QUESTION)
    try:
        before = as_chat(tokenizer, asked, answer=False)
        whole = as_chat(tokenizer, [*asked, _said(_ANSWER)], answer=True)
    except InputError:
        return "has a chat template that takes no question and answer as texts"
    if not whole.startswith(before):
        return "has a chat template that changes a prompt once it is answered"
    if _QUESTION not in before or _ANSWER not in whole[len(before) :]:
        return "has a chat template that leaves out a question or its answer"
    return None


def answer_ends(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens with which the chat template ends an answer, such as `<|im_end|>`; none if it only writes on."""
    _, after = around_answers(tokenizer)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token for token in cast(list[int], ids) if token in special][:1]


def around_answers(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """What the chat template writes between a question and its answer, beyond the place of an answer, and after it."""
    asked = messages_of(_QUESTION)
    whole = as_chat(tokenizer, [*asked, _said(_ANSWER)], answer=True)
    before, _, after = whole[len(as_chat(tokenizer, asked, answer=False)) :].rpartition(_ANSWER)
    return before, after


def chat_exchanges(
    origin: Origin, prompts: Sequence[str], completions: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[str], list[str]]:
    """Prompts as the template writes them up to the assistant's answer, and what it then adds for the completions.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses a prompt, or changes it once it is answered.
    """
    questions, answers = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        asked = messages_of(prompt)
        before = as_chat(tokenizer, asked, answer=False)
        whole = as_chat(tokenizer, [*asked, _said(completion)], answer=True)
        if not whole.startswith(before):
            raise InputError(
                f"{origin}: the tokenizer's chat template changes the prompt of row {origin.row(row)} once it is "
                "answered, so "
                "the beginning of the answer is unknown; set data.chat_template=false"
            )
        questions.append(before)
        answers.append(whole[len(before) :])
    return questions, answers


def as_chat(tokenizer: "PreTrainedTokenizerBase", messages: Messages, answer: bool) -> str:
    """Messages as the tokenizer's chat template writes them; without an answer, up to the place of an answer.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"data.chat_template=true, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; set "
            "data.chat_template=false, or use a model that was trained on chats"
        )
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer))
    except Exception as error:  # a template can raise anything
        raise InputError(
            f"the tokenizer's chat template rejects a message: {error!s:.200}; set data.chat_template=false"
        ) from error


def _said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}
