"""Measures how similar a generated text is to its reference.

ROUGE-L is implemented here in twenty lines, because the library rouge-score (0.1.2, of 2022) needs nltk for a stemming
that is off by default, and ignores all letters but a to z. On English texts both give the same value.
"""

import re
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")


def exact_match(generated: str, reference: str) -> float:
    """Return 1 if both have the same words, whatever white space is around and between them; else 0."""
    return float(generated.split() == reference.split())


def rouge_l(generated: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin, 2004), in lower case;
    0 if either text has no word.
    """
    a, b = (WORD.findall(text.lower()) for text in (generated, reference))
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest sequence whose items are in both in this order,
    possibly with other items between.
    """
    longest = [0] * (len(b) + 1)  # of `a` up to here and the first items of `b`, as many as the index says
    for item in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            before = longest[j]
            longest[j] = diagonal + 1 if item == other else max(before, longest[j - 1])
            diagonal = before
    return longest[-1]
