"""Says what a person should know about the rows that a run reads: what is cut, and what is in both splits."""

from collections.abc import Iterator
from itertools import pairwise

import torch

from fftmoe.data.completions import Completions
from fftmoe.data.examples import Examples
from fftmoe.data.images import ImageExamples
from fftmoe.data.preferences import Preferences, num_equal
from fftmoe.data.tokens import AnsweredText, TokenizedText
from fftmoe.shown import count_of


def cut_notes(split: str, examples: Examples, max_length: int) -> tuple[str, ...]:
    """Return a sentence about texts that are as long as the limit, and what longer ones lose; nothing if there is none.

    Texts with prompts lose the beginning of the prompt first (`completions.py: tokenize_completions`).
    """
    if isinstance(examples, ImageExamples):
        return ()
    if isinstance(examples, Preferences):
        examples = examples.answers
    full = int((examples.lengths >= max_length).sum())
    if not full:
        return ()
    return (
        f"{split} rows: in {full} of {count_of(len(examples), 'text')} there are data.max_length={max_length} tokens "
        f"or more; {_what_is_lost(examples)} is not read",
    )


def _what_is_lost(examples: Examples) -> str:
    if isinstance(examples, Completions) and bool((examples.starts > 0).any()):
        return "of longer ones the beginning of the prompt, and then the end of the answer,"
    return "what is beyond"


def equal_notes(split: str, examples: Examples) -> tuple[str, ...]:
    """Return a sentence about pairs with equal answers, which say nothing; nothing if there is none."""
    equal = num_equal(examples) if isinstance(examples, Preferences) else 0
    if not equal:
        return ()
    return (
        f"{split} rows: in {equal} of {count_of(len(examples), 'pair')} both answers are equal, as the model reads "
        "them, which says nothing of a preference",
    )


def shared_notes(train: Examples, test: Examples) -> tuple[str, ...]:
    """Return a sentence about test rows that are also training rows, as the model reads them;
    nothing if there is none.
    """
    shared = count_shared(train, test)
    if not shared:
        return ()
    are = "is also a training row" if shared == 1 else "are also training rows"
    rows = count_of(len(test), "test row")
    return (f"{shared} of {rows} {are}, so a result on such rows says little of new data",)


def count_shared(train: Examples, test: Examples) -> int:
    """Return how many of the test rows have the same content as a training row; labels are not compared."""
    wanted = set(contents(test))
    found = wanted.intersection(contents(train))
    return sum(content in found for content in contents(test)) if found else 0


def contents(examples: Examples) -> Iterator[bytes]:
    """Yield the content of each example as bytes: its tokens, or the sums of an image's rows and columns of pixels.

    The sums take a hundredth of an image's bytes. Images with equal sums are taken to be the same.
    """
    if isinstance(examples, Preferences):
        texts = list(contents(examples.answers))
        yield from map(b"".join, zip(texts[: len(examples)], texts[len(examples) :], strict=True))
    if isinstance(examples, AnsweredText):
        examples = examples.texts
    if isinstance(examples, TokenizedText):
        ids, offsets = examples.input_ids.numpy(), examples.offsets.tolist()
        yield from (ids[start:end].tobytes() for start, end in pairwise(offsets))
    if isinstance(examples, ImageExamples):
        for pixels in examples.pixels:
            sums = [pixels.sum(axis, dtype=torch.int32).flatten() for axis in (1, 2)]
            yield torch.cat(sums).numpy().tobytes()
