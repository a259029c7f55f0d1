"""How like a text that was written is to the one that was wanted.

ROUGE-L is our own, twenty lines, because the library of that name (rouge-score 0.1.2, of 2022) brings nltk along for
stemming that is off by default, and knows no letters but a to z. On English texts both give the same.
"""

import re
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def exact_match(written: str, wanted: str) -> float:
    """1 where both are the same, whatever space is around and between their words; else 0."""
    return float(written.split() == wanted.split())


def rouge_l(written: str, wanted: str) -> float:
    """The F1 of the longest common subsequence of words (Lin, 2004), in small letters; 0 where either has no word."""
    a, b = (WORD.findall(text.lower()) for text in (written, wanted))
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """How many items the longest sequence has that is in both in this order, perhaps with others in between."""
    longest = [0] * (len(b) + 1)  # with all of `a` so far, and so many of `b`
    for item in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            before = longest[j]
            longest[j] = diagonal + 1 if item == other else max(before, longest[j - 1])
            diagonal = before
    return longest[-1]
