"""Makes the builtin set of preferences: a right and a wrong continuation of texts from the standard library's
docstrings.

The rows are made of the docstrings in `stdlib_docs.py`. A prompt is the first half of a text with the name of its
module, and the chosen answer is the second half. In every other row the rejected answer does not fit: it is the second
half of another text of the same module. In the rows between it does not stop: it is the chosen answer, and another text
after it. The texts of test rows are no texts of training rows.
"""

from typing import NamedTuple

from fftmoe.data.stdlib_docs import SPLIT_SEED, stdlib_docs
from fftmoe.rng import numpy_generator

FEWEST_WORDS, MOST_WORDS = 8, 40  # of a text: shorter ones have no two halves, longer ones are often lists


class PreferenceRow(NamedTuple):
    """Holds one row: a prompt, its two answers, the chapter of the Python Library Reference, and the module."""

    prompt: str
    chosen: str
    rejected: str
    label: str
    module: str


def stdlib_preferences() -> dict[str, list[PreferenceRow]]:
    """Return the rows by split, always in the same order; a module with a single text has none.

    Returns:
        `{"train": rows, "test": rows}`.

    Raises:
        InputError: as `stdlib_docs`.
    """
    found: dict[str, list[PreferenceRow]] = {}
    for split, rows in stdlib_docs().items():
        by_module: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for text, chapter, module in rows:
            words = text.split()
            if FEWEST_WORDS <= len(words) <= MOST_WORDS:
                half = len(words) // 2
                by_module.setdefault((chapter, module), []).append((" ".join(words[:half]), " ".join(words[half:])))
        found[split] = [
            PreferenceRow(
                f"Complete this sentence about Python's module {module}: {begin}", end, other, chapter, module
            )
            for (chapter, module), halves in by_module.items()
            for begin, end, other in _paired(halves, f"{split} {chapter} {module}")
        ]
    return found


def _paired(halves: list[tuple[str, str]], name: str) -> list[tuple[str, str, str]]:
    """Return both halves of each text and a rejected answer, from the text that follows it in a random circle of all.

    Rows whose second answer is right too are left out: some texts differ in a name only.
    """
    circle = numpy_generator(SPLIT_SEED, "stdlib-preferences", name).permutation(len(halves)).tolist()
    following = dict(zip(circle, [*circle[1:], *circle[:1]], strict=True))
    texts = {f"{begin} {end}" for begin, end in halves}
    rows: list[tuple[str, str, str]] = []
    for place, (begin, end) in enumerate(halves):
        other = halves[following[place]]
        rejected = other[1] if place % 2 else f"{end} {other[0]} {other[1]}"
        if following[place] != place and f"{begin} {rejected}" not in texts:
            rows.append((begin, end, rejected))
    return rows
