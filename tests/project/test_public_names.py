"""A public name has one meaning: modules that define the same one mean the same idea."""

import ast
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fftmoe"
# A verb of the command line, or of the Python interface, has the name of the function that it calls. A constant is
# written twice where one of its modules may not import the other, or not without torch; a test compares the two.
SAME_IDEA = {"compare", "export", "init", "main", "predict", "resume", "run", "stop"}
SAME_IDEA |= {"IGNORED", "LANGUAGE_TASKS"}


def public_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def test_no_public_name_has_two_meanings():
    places = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in public_names(path):
            places[name].add(str(path.relative_to(PACKAGE)))
    repeated = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in repeated.items() if name not in SAME_IDEA} == {}
    assert repeated.keys() >= SAME_IDEA  # the list names nothing that is gone


def test_the_constants_that_stand_twice_are_equal():
    from fftmoe.adapter import auxiliary
    from fftmoe.config import backbone
    from fftmoe.data import roles, tokens

    assert auxiliary.IGNORED == tokens.IGNORED
    assert backbone.LANGUAGE_TASKS == roles.LANGUAGE_TASKS


def private_uses(source: str) -> Iterator[str]:
    """Where a test imports or patches what a module of the package keeps to itself."""
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fftmoe":
            modules |= {alias.asname or alias.name for alias in node.names}
            yield from (f"{node.lineno}: {alias.name}" for alias in node.names if _is_private(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_ours(ast.unparse(node.value), modules):
            yield from [f"{node.lineno}: {node.attr}"] if _is_private(node.attr) else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr") and len(node.args) > 1:
            texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
            ours = any(_is_ours(name, modules) for name in (*map(str, texts[:1]), ast.unparse(node.args[0])))
            private = any(_is_private(part) for text in texts for part in str(text).split("."))
            yield from [f"{node.lineno}: {ast.unparse(node)}"] if ours and private else []


def _is_ours(name: str, modules: Collection[str]) -> bool:
    return name in modules or name.startswith("fftmoe.")


def _is_private(name: str) -> bool:
    """Whether the name is private; named tuples have public methods that look so."""
    return name.startswith("_") and not name.startswith("__") and name not in ("_fields", "_replace", "_asdict")


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_no_private_name_of_the_package_is_used_outside_it(folder: str):
    found = {
        str(path.relative_to(ROOT)): uses
        for path in (ROOT / folder).rglob("*.py")
        if (uses := list(private_uses(path.read_text())))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "from fftmoe.data.hub import _names",
        "from fftmoe.data import hub\nhub._names()",
        "from fftmoe.data import hub as h\nmonkeypatch.setattr(h, '_names', None)",
        "monkeypatch.setattr('fftmoe.data.hub._names', None)",
        "import fftmoe.data.hub\nfftmoe.data.hub._names()",
    ],
)
def test_a_use_of_a_private_name_is_found(line: str):
    assert len(list(private_uses(line))) == 1
