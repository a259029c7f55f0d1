"""A number agrees with its noun in every message: `count_of(number, "row")` says `1 row`, and `{number} rows` does not.

A plural stands only behind numbers that are never 1.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fftmoe"
NOUNS = """
    alarms alternatives answers batches blocks bytes cases cells certificates characters clients columns days
    digits docstrings draws epochs examples experts failures faults files folders functions groups ids images keys
    labels levels lines messages modules nodes numbers objects pairs parameters parts processes prompts rounds rows runs
    seconds seeds sites steps tags tensors texts tiers times tokens trackers updates values variants words workers
""".split()
ADJECTIVES = """
    approved binary different distinct effective finished further held-out local more new own resident special
    such test trained training valid whole
""".split()
COUNTED = re.compile(rf" (?:(?:{'|'.join(ADJECTIVES)}) )*(?:{'|'.join(NOUNS)})\b")
LOGGED = re.compile(rf"%d{COUNTED.pattern}")
NO_COUNT = {
    ("adapter/low_rank.py", "targets"): "names of modules",
    ("cli/held_experts.py", "most"): "the end of a range: 0 to 1 experts",
    ("data/columns.py", "type(value).__name__"): "the type of values",
    ("data/images.py", "array.dtype"): "the type of numbers",
    ("data/lost.py", "split"): "the name of a split",
    ("data/names.py", "type(value).__name__"): "the type of values",
    ("deploy/status.py", "facts.get('pid')"): "the number of a process, which runs",
    ("setup/baselines.py", "recipe.method"): "the name of a method",
    ("store/bindings.py", "split"): "the name of a split",
}


def plurals(source: str) -> Iterator[tuple[int, str, str]]:
    """The line, the value and the plural behind it, of every value in an f-string and every `%d` of a log."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for at, (value, after) in enumerate(zip(node.values, node.values[1:], strict=False)):
                before = node.values[at - 1] if at else None
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    found = COUNTED.match(str(after.value))
                    if found and not _is_never_one(value, before):
                        yield node.lineno, ast.unparse(value.value), found[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((node.lineno, "%d", found[0]) for found in LOGGED.finditer(node.value))


def _is_never_one(value: ast.FormattedValue, before: ast.expr | None) -> bool:
    """Whether it is a constant, a decimal number as `1.0`, a recipe's value (`rounds=1`), or has its noun already."""
    of_a_recipe = isinstance(before, ast.Constant) and str(before.value).endswith("=")
    text = ast.unparse(value.value)
    is_constant = text.split(".")[-1].isupper()
    form = ast.unparse(value.format_spec)[2:-1] if value.format_spec else ""
    return of_a_recipe or is_constant or text.startswith("count_of(") or bool(re.search(r"\.[1-9]|g$", form))


def test_no_message_has_a_plural_behind_a_number_that_can_be_1():
    found, excepted = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        for line, value, text in plurals(path.read_text()):
            if (file, value) in NO_COUNT:
                excepted.add((file, value))
            else:
                found.append(f"{file}:{line}: {{{value}}}{text}")
    assert found == []
    assert excepted == NO_COUNT.keys()


@pytest.mark.parametrize(
    "source",
    ['"%d rows"', 'f"{n} rows"', 'f"a {len(n)} more test rows, {m}"', 'f"{x:g} of {n} clients fail"', 'f"{n:,} rows"'],
)
def test_a_plural_is_found(source: str):
    assert len([*plurals(source)]) == 1


@pytest.mark.parametrize(
    "source", ['f"{count_of(n, z)} rounds to 0"', 'f"{MOST} rows"', 'f"{n:.1f} experts"', 'f"rounds={n} steps"']
)
def test_what_agrees_or_is_never_1_is_not_found(source: str):
    assert not [*plurals(source)]
