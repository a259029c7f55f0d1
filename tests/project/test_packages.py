"""Every package says what lives in it, what does not, and who may import it."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGES = sorted(path.parent for path in SOURCE.glob("fftmoe/**/__init__.py"))
SAYS_WHO = re.compile(
    r"(?:Only (?P<few>`\w+`(?:(?:, | and )`\w+`)*) imports? (?:it|this package)"
    r"|(?P<all>[Ee]very package above may import (?:it|this one))"
    r"|(?P<none>No other package imports this one))"
)
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: ".".join(folder.parts[-2:]))


def described(package: Path) -> str:
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""


def imports_of(file: Path) -> Iterator[str]:
    """The modules that a file imports, also within functions; `from a import b` counts as `a` and as `a.b`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))


@cache
def importers() -> Mapping[str, frozenset[str]]:
    """By module, the names below `fftmoe` of the packages and single files that import it.

    `fftmoe/__init__.py` does not count: it passes on the names of the Python interface.
    """
    found = defaultdict(set)
    for file in SOURCE.glob("fftmoe/*/**/*.py"):
        for name in imports_of(file):
            found[name].add(file.relative_to(SOURCE / "fftmoe").parts[0])
    for file in SOURCE.glob("fftmoe/[a-z]*.py"):
        for name in imports_of(file):
            found[name].add(file.stem)
    return {name: frozenset(users) for name, users in found.items()}


@every_package
def test_a_package_describes_itself_in_at_least_two_sentences(package: Path):
    text = described(package)
    sentences = re.findall(r"\.(?=\s+[A-Z`]|$)", text)
    assert len(sentences) >= 2, text


@every_package
def test_a_package_says_truly_who_imports_it(package: Path):
    name = ".".join(package.relative_to(SOURCE).parts)
    if name == "fftmoe":
        return  # a person imports it
    users = set[str]().union(*(found for module, found in importers().items() if f"{module}.".startswith(f"{name}.")))
    if name.count(".") == 1:
        users -= {package.name}
    (said,) = SAYS_WHO.finditer(" ".join(described(package).split()))
    if said["few"]:
        assert users == set(re.findall(r"`(\w+)`", said["few"])), name
    else:
        assert bool(users) == bool(said["all"]), name
