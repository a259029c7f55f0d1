"""The architecture page agrees with the program: its packages, its quoted loop, and every file and name on it."""

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fftmoe.rounds.loop import federate

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fftmoe"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "LOG.md"),  # the log is history
]
WIDTH = 59


def layers() -> list[list[str]]:
    """The packages of each floor, from the top, as the import contract names them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if "fftmoe.cli" in contract.get("layers", ()))
    return [[name.removeprefix("fftmoe.") for name in floor.split(" | ")] for floor in floors]


def building(floors: list[list[str]]) -> str:
    """The diagram of these floors."""
    rows = ["│" + "   ".join(floor).center(WIDTH) + "│\n" for floor in floors]
    line = "─" * WIDTH
    return f"┌{line}┐\n" + f"├{line}┤\n".join(rows) + f"└{line}┘\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The functions, classes and values of a module, and `Class.member` of its classes."""
    return frozenset(names_of(ast.parse(path.read_text()).body, ""))


def names_of(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name):
                yield prefix + name
            case ast.ClassDef(name=name, body=members):
                yield prefix + name
                yield from names_of(members, f"{name}.")
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield prefix + name


def find(path: str) -> list[Path]:
    """The files that a page can mean by this path; a bare name can be a file in any folder."""
    exact = [place for place in (PACKAGE / path, ROOT / path, PACKAGE.parent / path) if place.is_file()]
    if exact or "/" in path:
        return exact
    return [found for folder in ("src", "tests", "benchmarks", "examples") for found in (ROOT / folder).rglob(path)]


def test_the_floors_are_those_of_the_import_contract():
    assert blocks("text") == [building(layers())]


def test_every_package_has_its_question():
    rows = re.findall(r"^\| `(\w+)` \| .*\?", PAGE, flags=re.MULTILINE)
    assert rows == [name for floor in layers() for name in floor]
    assert set(rows) == {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {
        "__init__",
        "__main__",
    }


def test_the_loop_is_quoted_literally():
    assert blocks("python") == [inspect.getsource(federate)]


def test_the_loop_fits_on_one_screen():
    assert len(inspect.getsource(federate).splitlines()) <= 40


NAMED = re.findall(r"`([\w/]+\.py): ([\w.]+)`", PAGE)


def test_the_walks_name_files_and_functions():
    assert len(NAMED) > 50
    for path, name in NAMED:
        found = find(path)
        assert len(found) == 1, path
        assert name in defined_in(found[0]), f"{path}: {name}"


@pytest.mark.parametrize("walk", ["The path of a recipe key", "The path of a tensor"])
def test_every_step_of_a_walk_names_its_place(walk: str):
    text = PAGE.split(f"\n## {walk}\n")[1].split("\n## ")[0]
    steps = re.findall(r"^\d+\. .*", text, flags=re.MULTILINE)
    assert len(steps) > 9
    for step in steps:
        assert re.search(r"`[\w/]+\.py: [\w.]+`", step), step


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_file_that_a_page_names_exists(page: Path):
    mentioned = re.findall(r"`(?:python |pytest )?([\w/]+\.py)\b", page.read_text())
    assert [path for path in mentioned if not find(path)] == []


def test_every_section_of_a_page_that_others_name_exists():
    named = 0
    for file in [*sorted(PACKAGE.rglob("*.py")), *PAGES]:
        text = re.sub(r"\s+", " ", file.read_text())
        for page, rest in re.findall(r"docs/(\w+)\.md`?, ([A-Z].{60})", text):
            headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.MULTILINE)
            assert any(rest.startswith(heading) for heading in headings), f"{file}: docs/{page}.md, {rest}"
            named += 1
    assert named > 9
