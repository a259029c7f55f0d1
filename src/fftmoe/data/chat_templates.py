"""Writes prompts and completions with the chat template of a tokenizer.

A template is a small program of the model's author. transformers renders it in a sandbox that sees the messages only,
and the date: some write it into every prompt, so here it is always the same, or a run would depend on the day.

A template marks who speaks with special tokens. A prompt that holds the text of one, such as `<|im_start|>system`, must
not speak for the system: what looks like a special token in it is marked, and becomes the tokens of its letters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fftmoe.data.chats import Messages, messages_of
from fftmoe.data.table import Origin
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_DATE = {"%d": "26", "%-d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24"}
_FIXED_DATE = (
    "{%- macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _DATE.items())
    + " }}{% endmacro %}"
)
"""The date that Llama's template writes where it knows none, in the place of the clock."""
_QUOTED, _ENDS = "\ufdd0", "\ufdd1"  # no characters of any text: they stand around what only looks like a special token
_MARKED = re.compile(f"{_QUOTED}([^{_QUOTED}{_ENDS}]*){_ENDS}")
_QUESTION, _ANSWER = "Which colour is the sky?", "Blue"


def template_fault(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return why the prompts of a data set cannot be written with this tokenizer's chat template; None if they can.

    A question and its answer are written for a try.

    Returns:
        the end of a sentence about the tokenizer, such as "has no chat template".
    """
    if not tokenizer.chat_template:
        return "has no chat template"
    asked = messages_of(_QUESTION)
    try:
        writer = ChatWriter.of(tokenizer)
        before = writer.write(asked, answer=False)
        whole = writer.write([*asked, _said(_ANSWER)], answer=True)
    except InputError:
        return "has a chat template that takes no question and answer as texts"
    if not whole.startswith(before):
        return "has a chat template that changes a prompt once it is answered"
    if _QUESTION not in before or _ANSWER not in whole[len(before) :]:
        return "has a chat template that leaves out a question or its answer"
    return None


def answer_ends(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens with which the chat template ends an answer, such as `<|im_end|>`;
    none if it only writes on.
    """
    _, after = around_answers(tokenizer)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token for token in cast(list[int], ids) if token in special][:1]


def around_answers(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """Return what the chat template writes between a question and its answer, beyond the place of an answer,
    and after it.
    """
    asked, writer = messages_of(_QUESTION), ChatWriter.of(tokenizer)
    whole = writer.write([*asked, _said(_ANSWER)], answer=True)
    before, _, after = whole[len(writer.write(asked, answer=False)) :].rpartition(_ANSWER)
    return before, after


def chat_exchanges(
    origin: Origin, prompts: Sequence[str], completions: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[str], list[str]]:
    """Return prompts as the template writes them up to the assistant's answer, and what it then adds for the
    completions.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses a prompt, or changes it once it is answered.
    """
    questions, answers, writer = [], [], ChatWriter.of(tokenizer)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        asked = messages_of(prompt)
        before = writer.write(asked, answer=False)
        whole = writer.write([*asked, _said(completion)], answer=True)
        if not whole.startswith(before):
            raise InputError(
                f"{origin}: the tokenizer's chat template changes the prompt of row {origin.row(row)} once it is "
                "answered, so "
                "the beginning of the answer is unknown; set data.chat_template=false"
            )
        questions.append(before)
        answers.append(whole[len(before) :])
    return questions, answers


@dataclass(frozen=True)
class ChatWriter:
    """Writes messages as the chat template of a tokenizer does; made once for many of them.

    Attributes:
        template: with its date. special: finds texts of special tokens; None if there are none.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    special: re.Pattern[str] | None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ChatWriter":
        """Make one.

        Raises:
            InputError: the tokenizer has no chat template, or several without a first among them.
        """
        if not tokenizer.chat_template:
            raise InputError(
                f"data.chat_template=true, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; set "
                "data.chat_template=false, or use a model that was trained on chats"
            )
        try:
            template = dated_template(tokenizer)
        except ValueError as error:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has several chat templates and none is the default; set "
                "data.chat_template=false"
            ) from error
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        texts = {*tokenizer.all_special_tokens, *added} - {""}
        longest_first = sorted(map(re.escape, texts), key=len, reverse=True)
        return cls(tokenizer, template, re.compile("|".join(longest_first)) if longest_first else None)

    def write(self, messages: Messages, answer: bool) -> str:
        """Return the messages; without an answer, up to the place of an answer.

        What only looks like a special token is marked, see `unquoted_parts`.

        Raises:
            InputError: the template refuses these messages.
        """
        quoted = [self._quoted(message) for message in messages]
        try:
            written = self.tokenizer.apply_chat_template(
                quoted, tokenize=False, add_generation_prompt=not answer, chat_template=self.template
            )
        except Exception as error:  # a template can raise anything
            raise InputError(
                f"the tokenizer's chat template rejects a message: {error!s:.200}; set data.chat_template=false"
            ) from error
        return cast(str, written)

    def _quoted(self, message: dict[str, str]) -> dict[str, str]:
        """Return a message in which texts of special tokens are marked; an answer as it is,
        as it ends with such a token.
        """
        if message["role"] == "assistant" or self.special is None:
            return message
        return {**message, "content": self.special.sub(f"{_QUOTED}\\g<0>{_ENDS}", message["content"])}


def dated_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokenizer's chat template, which gets the same date on every day."""
    template = tokenizer.get_chat_template()
    return _FIXED_DATE + template if "strftime_now" in template else template


def unquoted_parts(text: str) -> list[tuple[str, bool]]:
    """Return the parts of a written chat, each with whether it only looks like a special token;
    one part if none does.
    """
    parts = _MARKED.split(text)
    return [(part, place % 2 == 1) for place, part in enumerate(parts) if part]


def _said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}
