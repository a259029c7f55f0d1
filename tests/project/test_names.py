"""A public name has one meaning: modules that define the same one mean the same idea."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "fftmoe"
# A verb of the command line, or of the Python interface, has the name of the function that it calls. A constant is
# written twice where one of its modules may not import the other; tests compare the two.
SAME_IDEA = {"compare", "export", "init", "main", "predict", "resume", "run", "stop"}
SAME_IDEA |= {"HEAD_ONLY", "IGNORED", "LANGUAGE_TASKS"}


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
    from fftmoe.rounds import baselines
    from fftmoe.setup import baselines as wired

    assert auxiliary.IGNORED == tokens.IGNORED
    assert backbone.LANGUAGE_TASKS == roles.LANGUAGE_TASKS
    assert baselines.HEAD_ONLY == wired.HEAD_ONLY
