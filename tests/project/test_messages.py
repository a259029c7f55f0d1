"""Messages about mistakes say what to change, in all packages whose messages a person at the command line reads."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fftmoe"
MODULES = [
    *(
        path
        for name in ("cli", "config", "cost", "data", "exports", "setup", "tasks", "trained")
        for path in sorted((PACKAGE / name).rglob("*.py"))
    ),
    *(PACKAGE / "backbones" / f"{name}.py" for name in ("attach", "find", "load", "quantize", "trust")),
    *sorted((PACKAGE / "rounds").rglob("*.py")),
]
# The remedy follows a semicolon, or a colon and a verb; `did_you_mean` begins with a semicolon.
REMEDY = re.compile(r"; |did_you_mean|: (pip install|write|keep|name|set|use|leave) |must be |e\.g\.|exactly one of")
# Functions that give a reason, to which another message adds the remedy, or that only repeat a message.
REASONS = {
    "decode_image",
    "_inside",
    "_array",
    "_unique",
    "_no_number",
    "_row",
    "_value",
    "parse_recipe",
    "read_choices",
    "encoding_option",
}


def without_remedy(source: str) -> Iterator[str]:
    """The messages of a module that do not say what to change."""
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or function.name in REASONS:
                continue
            if ast.unparse(node.exc.func) in ("InputError", "RunError", "ValueError") and node.exc.args:
                message = node.exc.args[0]
                words = " ".join(str(part.value) for part in ast.walk(message) if isinstance(part, ast.Constant))
                if re.search(r"[a-z]{3}", words) and not REMEDY.search(ast.unparse(message)):
                    yield ast.unparse(message)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_message_says_what_to_change(module: Path):
    assert list(without_remedy(module.read_text())) == []


def test_the_search_finds_a_message_without_a_remedy():
    raised = "def f(x):\n    raise InputError({})\n"
    assert list(without_remedy(raised.format('f"the folder {x} has no config.json"')))
    assert not list(without_remedy(raised.format('f"the folder {x} has no config.json; name another"')))
