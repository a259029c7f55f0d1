"""Every docstring of the package begins with a sentence: with a verb that says what the thing does."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fftmoe"
FILES = sorted(PACKAGE.rglob("*.py"))
VERBS = frozenset(
    """
    accept add adjust aggregate allow announce answer append apply ask assign attach average be bind bound build
    cache call carry change check choose claim classify collect combine compare complete compose compute configure
    connect continue copy count cut decide decode define delete deliver derive describe divide do draw drop encode
    end enter exchange expand export fill find fine-tune fit flush force forecast freeze give group guard guess
    hand hold identify implement import install invert join judge keep label leave let limit list load log
    look make map mark measure merge move multiply name note number object open order own parse pass pickle plan
    predict prepare print provide put quantise queue raise read rebuild record reduce refuse register remember
    remove repeat replace report resolve restore return route run save say scale score see select send serialise set
    shorten show silence sleep solve sort split stack start state stop store suggest sum tag take talk tell time
    tokenize train truncate turn update use validate wait watch wrap write yield
    """.split()
)
# The name of what is described may stand before the verb: `Budget` states …, FedIT averages …, The method `x` trains ….
NAME = re.compile(r"(?:The method )?(?:`[^`]+`|\w*[A-Z]\w*[A-Z][\w-]*) ")


def third_person(verb: str) -> str:
    if verb == "be":
        return "is"
    if verb.endswith("y") and verb[-2] not in "aeo":
        return f"{verb[:-1]}ies"
    return f"{verb}{'es' if verb.endswith(('s', 'sh', 'ch', 'x', 'o')) else 's'}"


ARE = frozenset(map(third_person, VERBS))


def begins_with_a_verb(text: str, of_function: bool) -> bool:
    """Whether a function is told what to do (`Return …`), and of anything else is said what it does (`Holds …`).

    "Number of rows", "Names in data" and "Sums over rows" are no sentences, although all these nouns can be verbs.
    """
    if not of_function:
        named = NAME.match(text)
        text = text[named.end() :].capitalize() if named else text
    words = [word.rstrip(",:;.") for word in text.split()[:2]]
    known = VERBS if of_function else ARE
    nouns = {"of"} if of_function else {"of", "in", "over"}  # what stands behind a noun, and not behind its verb
    return words[0][:1].isupper() and words[0].lower() in known and not nouns & {*words[1:]}


def docstrings(file: Path) -> Iterator[tuple[str, str, bool]]:
    """The place, the text and whether it is a function's, of every docstring in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                name = "" if isinstance(node, ast.Module) else f": {node.name}"
                yield f"{file.relative_to(PACKAGE)}{name}", text, not isinstance(node, ast.Module | ast.ClassDef)


def test_every_docstring_begins_with_a_sentence():
    found = [each for file in FILES for each in docstrings(file)]
    assert len(found) > 1000
    wrong = [f"{place}: {text[:60]}" for place, text, of_function in found if not begins_with_a_verb(text, of_function)]
    assert wrong == []


def test_the_first_paragraph_of_every_docstring_ends_like_a_sentence():
    found = [(place, text.split("\n\n")[0]) for file in FILES for place, text, _ in docstrings(file)]
    assert [f"{place}: {text[-60:]}" for place, text in found if not text.endswith((".", ":", "?"))] == []


@pytest.mark.parametrize("text", ["Return a sum.", "See PyYAML.", "Return, by client, the rows.", "Do nothing: …."])
def test_what_a_function_is_told_to_do_is_a_sentence(text: str):
    assert begins_with_a_verb(text, of_function=True)


@pytest.mark.parametrize(
    "text", ["Holds rows.", "`Budget` states a limit.", "FedIT averages.", "The method `x` trains."]
)
def test_what_is_said_of_a_class_is_a_sentence(text: str):
    assert begins_with_a_verb(text, of_function=False)


@pytest.mark.parametrize(
    "text", ["The most tokens of a text.", "Returns a sum.", "Number of rows.", "return it.", "What"]
)
def test_a_noun_or_a_description_is_not_what_a_function_does(text: str):
    assert not begins_with_a_verb(text, of_function=True)


@pytest.mark.parametrize(
    "text", ["The rows.", "Hold rows.", "Counts of rows.", "Names in data: ….", "`Budget` of a client."]
)
def test_a_noun_is_not_said_of_a_class(text: str):
    assert not begins_with_a_verb(text, of_function=False)
