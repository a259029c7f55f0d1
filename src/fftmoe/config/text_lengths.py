"""Measures how long the texts of a data set are, in tokens of the model that is going to read them.

A rule of thumb is no rule: on the same texts a tokenizer with a vocabulary of 512 gives four times as many tokens as
one of 30,000. So the tokenizer of the model counts, as in a run. Where it cannot be loaded the run will say why, and an
estimate stands until then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fftmoe.errors import InputError

if TYPE_CHECKING:
    from fftmoe.data import Table

MOST_COUNTED = 5_000  # rows, evenly over the table
LETTERS_OF_A_TOKEN = 8  # for each token of the limit: longer texts have more tokens than that, and are not counted
TOKENS_PER_WORD, SPECIAL_TOKENS = 1.4, 2  # of the estimate


@dataclass(frozen=True)
class SampledTexts:
    """Holds texts of a data set, evenly over its rows.

    Attributes:
        texts: by key of the recipe, `data.text`, or `data.prompt` and `data.completion`, or `data.tokens`; N texts, or
            N lists of words, each. Of two answers `data.chosen` is the longer one. Empty for images.
    """

    texts: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, table: "Table", columns: Mapping[str, str]) -> "SampledTexts":
        """Return the texts of a table whose columns are named by key."""
        learned = next(
            (key for key in ("data.tokens", "data.chosen", "data.completion", "data.text") if key in columns), None
        )
        keys = [learned] if learned == "data.tokens" else ["data.prompt", learned]
        size = min(MOST_COUNTED, table.num_rows)
        places = [row * table.num_rows // size for row in range(size)]
        named = {key: table.columns[columns[key]] for key in keys if key in columns}
        found = {key: [values[place] for place in places] for key, values in named.items()}
        if learned == "data.chosen":
            others = [table.columns[columns["data.rejected"]][place] for place in places]
            found[learned] = [_longer(*both) for both in zip(found[learned], others, strict=True)]
        return cls(found)

    def __len__(self) -> int:
        return len(next(iter(self.texts.values()), ()))


def _longer(first: Any, second: Any) -> Any:
    """Return the longer of two answers, which nobody has checked yet, by its letters."""
    return max((own for own in (first, second) if isinstance(own, str)), key=len, default=first)


@dataclass(frozen=True)
class Reading:
    """Says how a model reads texts.

    Attributes:
        model: whose tokenizer counts. completes: it is a language model, which reads a prompt and its completion.
        chat_template: it reads them as the tokenizer's template writes them.
        most: the largest answer.
        spared: tokens of its places that something else takes.
        percent: of the texts, that are to be no longer.
    """

    model: str
    completes: bool
    chat_template: bool
    most: int
    spared: int = 0
    percent: int = 90


def long_text(sample: SampledTexts, reading: Reading, step: int) -> int:
    """Return the tokens that so many of the texts do not exceed, up to `reading.most` and to what the model can read.

    Args:
        step: the result is a multiple of it below these limits.
    """
    if not len(sample):
        return 0
    lengths: Sequence[float]
    try:
        lengths, most = _counted(sample, reading)
    except InputError:
        lengths, most = _estimated(sample), reading.most
    ordered = np.sort(np.asarray(lengths))
    longest = ordered[_share(len(ordered), reading.percent) - 1]
    return min(most, step * max(1, int(np.ceil(longest / step))))


def _share(number: int, percent: int) -> int:
    """Return the smallest number that is at least `percent` hundredths of another, without rounding."""
    return -(-percent * number // 100)


def _counted(sample: SampledTexts, reading: Reading) -> tuple[list[int], int]:
    """Return the tokens of each text, and the most that the model can read; a text of very many letters is long."""
    from fftmoe.backbones import load_tokenizer, most_tokens_of
    from fftmoe.data.completions import lengths_with_completions
    from fftmoe.data.tokens import lengths_of

    tokenizer = load_tokenizer(reading.model)
    readable = min(most_tokens_of(reading.model), tokenizer.model_max_length)
    most = max(1, min(reading.most, readable - reading.spared))
    if "data.tokens" in sample.texts:
        rows = [row if isinstance(row, list) else [] for row in sample.texts["data.tokens"]]
        words = [list(map(_readable, row[:most])) for row in rows]
        return lengths_of(words, tokenizer), most
    letters = LETTERS_OF_A_TOKEN * most
    whole = [list(map(_readable, column)) for column in sample.texts.values()]
    is_long = np.array([sum(map(len, row)) > letters for row in zip(*whole, strict=True)])
    if (~is_long).sum() < _share(len(is_long), reading.percent):
        return [most] * len(is_long), most
    *prompts, texts = [[text[:letters] for text in column] for column in whole]
    if reading.completes:
        asked = prompts[0] if prompts else None
        lengths = lengths_with_completions(asked, texts, tokenizer, reading.chat_template)
    else:
        lengths = lengths_of(texts, tokenizer)
    return np.where(is_long, most, lengths).tolist(), most


def _readable(text: Any) -> str:
    """Return what a tokenizer can read of a cell, which nobody has checked yet."""
    return text.encode(errors="ignore").decode() if isinstance(text, str) else ""


def _estimated(sample: SampledTexts) -> list[float]:
    """Return the estimated tokens of each text, without its tokenizer."""
    if "data.tokens" in sample.texts:
        rows = sample.texts["data.tokens"]
        return [SPECIAL_TOKENS + (TOKENS_PER_WORD * len(words) if isinstance(words, list) else 0.0) for words in rows]
    return [SPECIAL_TOKENS + sum(map(_estimated_tokens, row)) for row in zip(*sample.texts.values(), strict=True)]


def _estimated_tokens(text: Any) -> float:
    """Return the estimated tokens of a text.

    A letter outside ASCII counts as a token: a tokenizer that was made for English mostly splits a word of another
    script into its letters, and Chinese and Japanese have no spaces between words.
    """
    text = text if isinstance(text, str) else ""
    return TOKENS_PER_WORD * len(text.split()) + sum(letter > "\x7f" for letter in text)
