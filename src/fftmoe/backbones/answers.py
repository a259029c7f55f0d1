"""Finds the end and the text of what a language model writes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fftmoe.data import answer_ends
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNDECODED = " \ufffd"  # what may still change at the end of a text: a blank, and the mark of half a character


def end_ids_of(model: Any, tokenizer: "PreTrainedTokenizerBase", chat_template: bool) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, those of the model's own settings, and the chat
    template's.

    Args:
        chat_template: whether prompts are written with it.

    Raises:
        InputError: there is none.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    named += answer_ends(tokenizer) if chat_template else []
    ids = sorted({token for token in named if isinstance(token, int)})
    if not ids:
        raise InputError(
            f"neither the tokenizer of {tokenizer.name_or_path!r} nor its model names a token that ends a text "
            "(eos_token), so an answer would never end; use a language model's tokenizer"
        )
    return ids


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: Tensor | list[int]) -> str:
    """Return the text of generated tokens, without special tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def prompt_text_of(tokenizer: "PreTrainedTokenizerBase", ids: Tensor) -> str:
    """Return the text of a prompt, in which each special token ends a line, because it separates two messages."""
    parts: list[list[int]] = [[]]
    for token in ids.tolist():
        if token in tokenizer.all_special_ids:
            parts.append([])
        else:
            parts[-1].append(token)
    return "\n".join(text_of(tokenizer, part) for part in parts if part)


class TextInPieces:
    """Hands on the text of tokens piece by piece.

    A token may hold part of a character, and a tokenizer may write the end of a text in another way once more follows.
    A piece is therefore handed on once the next token has left it unchanged; the last piece of a text never is.

    Args:
        on_text: is given the pieces.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids: list[int] = []
        self._before = self._handed_on = ""

    def add(self, token: int) -> None:
        """Take the next token, and hand on what it has left as it was."""
        self._ids.append(token)
        text = text_of(self._tokenizer, self._ids)
        whole = _common_beginning(self._before, text).rstrip(UNDECODED)
        self._before = text
        if len(whole) > len(self._handed_on) and whole.startswith(self._handed_on):
            self._on_text(whole[len(self._handed_on) :])
            self._handed_on = whole


def _common_beginning(one: Sequence[str], two: str) -> str:
    places = (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return two[: next(places, min(len(one), len(two)))]
