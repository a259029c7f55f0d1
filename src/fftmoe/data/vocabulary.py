"""Finds the tokens that examples use, whatever kind of text they are."""

from fftmoe.data.examples import Examples
from fftmoe.data.preferences import Preferences
from fftmoe.data.tokens import AnsweredText, TokenizedText


def largest_token(examples: Examples) -> int:
    """Return the largest token id of these examples; -1 if they are images, or there are none."""
    if isinstance(examples, Preferences):
        return largest_token(examples.answers)
    texts = examples.texts if isinstance(examples, AnsweredText) else examples
    return int(texts.input_ids.max()) if isinstance(texts, TokenizedText) and len(texts.input_ids) else -1
