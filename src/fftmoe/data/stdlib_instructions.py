"""Makes the builtin set of instructions: eight kinds of questions about Python and its standard library, with answers.

Each kind is a client's work in the recipe `instructions`. The texts come from the sources of the running Python
(`stdlib_functions`), so another version of Python gives somewhat other rows. Nothing is downloaded or executed. A
function is used for one question only, so that nothing of a test question is in a training question.
"""

import ast
import builtins
import keyword
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from fftmoe.data.stdlib_docs import collector_paused, module_chapters
from fftmoe.data.stdlib_functions import DocumentedFunction, documented_functions
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator
from fftmoe.shown import count_of

ROWS, TEST_ROWS = 150, 30  # of each kind; the second are for testing
MOST_CHARACTERS, WORDS_OF_A_SENTENCE = 320, 30  # of a source that is shown, and of a sentence
# A constant, because the test set is part of the data and must not change with a run's seed.
SEED = 20_261_128
LONG_WORD = re.compile(r"[A-Za-z]{4,}")
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,'()-]{25,}\.")
BREAKS = ((")", ""), ("(", ""), (":", ""), ("]", ""), ("'", ""), ("=", "= ="), (",", ", ,"))


class Instruction(NamedTuple):
    """Holds one row: a question, its answer, and the kind of the question."""

    prompt: str
    completion: str
    kind: str


Ask = Callable[[DocumentedFunction, np.random.Generator], tuple[str, str] | None]


def stdlib_instructions() -> dict[str, list[Instruction]]:
    """Return the rows by split, always in the same order.

    Returns:
        `{"train": rows, "test": rows}`, with 120 and 30 rows of each kind.

    Raises:
        InputError: the running Python was installed without its library's source files.
    """
    with collector_paused():
        functions = list({found.summary: found for found in documented_functions()}.values())
    rows = {"values": list(_values(numpy_generator(SEED, "values"))), **_about_functions(functions)}
    if few := [kind for kind, own in rows.items() if len(own) < ROWS]:
        raise InputError(
            f"builtin:stdlib-instructions found {count_of(len(functions), 'function')}, too few for the questions "
            f"{few[0]!r}: this Python was installed without the sources of its standard library; use an interpreter "
            "that has them, or give data.source a folder with train and test files"
        )
    kinds = sorted(rows)
    return {
        "train": [Instruction(*row, kind) for kind in kinds for row in rows[kind][TEST_ROWS:]],
        "test": [Instruction(*row, kind) for kind in kinds for row in rows[kind][:TEST_ROWS]],
    }


def _about_functions(functions: list[DocumentedFunction]) -> dict[str, list[tuple[str, str]]]:
    """Return questions and answers by kind; each function goes to the kind with the fewest rows that can use it."""
    rng = numpy_generator(SEED, "functions")
    rows: dict[str, list[tuple[str, str]]] = {kind: [] for kind in ASKS}
    questions: set[str] = set()
    for place in rng.permutation(len(functions)):
        for kind in sorted(ASKS, key=lambda kind: len(rows[kind])):
            asked = ASKS[kind](functions[place], rng) if len(rows[kind]) < ROWS else None
            if asked is not None and asked[0] not in questions:
                rows[kind].append(asked)
                questions.add(asked[0])
                break
    return rows


def _chapters(function: DocumentedFunction, rng: np.random.Generator) -> tuple[str, str] | None:
    if not _is_sentence(function.summary):
        return None
    others = [chapter for chapter in _all_chapters() if chapter != function.chapter]
    options = [function.chapter, *(others[i] for i in rng.choice(len(others), 3, replace=False))]
    shown = "\n".join(f"- {options[i]}" for i in rng.permutation(len(options)))
    question = "Which chapter of the Python library reference does this sentence belong to?"
    return f"{question}\n{function.summary}\n{shown}", function.chapter


def _defaults(function: DocumentedFunction, _: np.random.Generator) -> tuple[str, str] | None:
    if not 1 <= len(function.defaults) <= 4 or len(function.signature) > MOST_CHARACTERS // 2:
        return None
    question = "Which parameters of this Python function have a default value?"
    return f"{question}\n{function.signature}", ", ".join(function.defaults)


def _errors(function: DocumentedFunction, _: np.random.Generator) -> tuple[str, str] | None:
    if not 1 <= len(function.raised) <= 3 or len(function.source) > MOST_CHARACTERS:
        return None
    return f"Which exceptions does this Python function raise?\n{function.source}", ", ".join(function.raised)


def _missing_words(function: DocumentedFunction, rng: np.random.Generator) -> tuple[str, str] | None:
    words = LONG_WORD.findall(function.summary)
    if not _is_sentence(function.summary) or len(set(words)) < 4:
        return None
    word = words[int(rng.integers(1, len(words)))]
    options = sorted({word, *(str(other) for other in rng.choice(keyword.kwlist, 3)), words[0].lower()})
    with_gap = re.sub(rf"\b{word}\b", "____", function.summary)
    return f"Which word is missing: {', '.join(options)}?\n{with_gap}", word


def _punctuation(function: DocumentedFunction, _: np.random.Generator) -> tuple[str, str] | None:
    if not _is_sentence(function.summary):
        return None
    plain = re.sub(r"[^a-z0-9 ]", "", function.summary.lower())
    return f"Write this sentence with capital letters and punctuation:\n{plain}", function.summary


def _summaries(function: DocumentedFunction, _: np.random.Generator) -> tuple[str, str] | None:
    if not _is_sentence(function.summary) or len(function.source) > MOST_CHARACTERS:
        return None
    return f"Describe in one sentence what this Python function does.\n{function.source}", function.summary


def _validity(function: DocumentedFunction, rng: np.random.Generator) -> tuple[str, str] | None:
    lines = [line.strip() for line in function.body.split("\n") if 20 <= len(line.strip()) <= 70]
    lines = [line for line in lines if not line.startswith("#") and is_valid(line)]
    if not lines:
        return None
    line = lines[int(rng.integers(len(lines)))]
    if rng.random() < 0.5:
        broken = [line.replace(old, new, 1) for old, new in BREAKS if old in line]
        broken = [other for other in broken if not is_valid(other)]
        if not broken:
            return None
        line = broken[int(rng.integers(len(broken)))]
    answer = "yes" if is_valid(line) else "no"
    return f"Is this line of Python valid? Answer yes or no.\n{line}", answer


ASKS: dict[str, Ask] = {
    "chapters": _chapters,
    "defaults": _defaults,
    "errors": _errors,
    "missing-words": _missing_words,
    "punctuation": _punctuation,
    "summaries": _summaries,
    "validity": _validity,
}
"""How a question of each kind is made of a function; None where the function does not serve for it."""


@cache
def _all_chapters() -> tuple[str, ...]:
    return tuple(sorted(set(module_chapters().values())))


def is_valid(line: str) -> bool:
    """Return whether a line is a whole statement, or the first line of a compound one such as `if x:`."""
    for text in (line, f"{line}\n    pass"):
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        return True
    return False


def _is_sentence(text: str) -> bool:
    return len(text.split()) <= WORDS_OF_A_SENTENCE and SENTENCE.fullmatch(text) is not None


def _values(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Yield expressions of words and small numbers with their values."""
    words = sorted({*keyword.kwlist, *(name for name in dir(builtins) if name.islower() and name.isalpha())})
    seen: set[str] = set()
    while len(seen) < ROWS:
        first, second = (words[i] for i in rng.choice(len(words), 2, replace=False))
        a, b, c = (int(number) for number in rng.integers(2, 20, 3))
        cut = int(rng.integers(1, 4))
        shapes: list[tuple[str, object]] = [
            (f"len({first!r})", len(first)),
            (f"{first!r}.upper()", first.upper()),
            (f"{first!r}[::-1]", first[::-1]),
            (f"{first!r}[:{cut}]", first[:cut]),
            (f"{first!r} + {second!r}", first + second),
            (f"'-'.join([{first!r}, {second!r}])", f"{first}-{second}"),
            (f"sorted([{a}, {b}, {c}])", sorted([a, b, c])),
            (f"max({a}, {b}, {c})", max(a, b, c)),
            (f"{a} + {b} * {cut}", a + b * cut),
            (f"{a} % {b}", a % b),
            (f"{first!r} in [{first!r}, {second!r}]", True),
            (f"{a} > {b}", a > b),
        ]
        expression, value = shapes[int(rng.integers(len(shapes)))]
        if expression not in seen:
            seen.add(expression)
            yield f"What is the value of this Python expression?\n{expression}", repr(value)
