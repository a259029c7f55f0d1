"""What pyproject.toml declares is what the code uses, and what constraints.txt and docs/security.md say."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
AT_RUN_TIME = [*BASE, *(one for extra, lines in EXTRAS.items() if extra != "dev" for one in lines)]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
PINS = {canonicalize_name(name): version for name, version in PINNED.items()}
# The modules of a distribution that has another name.
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "pytest-xdist": "xdist"}
# Modules that the package imports from what another distribution needs in any case.
COMES_WITH = {
    **dict.fromkeys(("cryptography", "fastapi", "httpx", "starlette", "uvicorn"), "flwr"),
    "pydantic_core": "pydantic",
    "scipy": "dp-accounting",
}
# Tools that no file of Python imports: where they are called, and the words of the call.
TOOLS = {
    "pytest-cov": ("Makefile", "--cov src/fftmoe"),
    "import-linter": ("Makefile", "lint-imports"),
    "ruff": ("Makefile", "ruff check"),
    "pyright": ("Makefile", "/pyright"),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mkdocstrings": ("mkdocs.yml", "mkdocstrings:"),
    "latex2mathml": ("docs/site_formulas.py", "from latex2mathml"),
    "build": ("tests/project/test_package.py", '"-m", "build"'),
    "hatchling": ("pyproject.toml", 'build-backend = "hatchling.build"'),
    "ipykernel": ("tests/project/test_examples.py", "NotebookClient("),  # it starts the kernel of that name
}


def module_of(requirement: Requirement) -> str:
    name = str(canonicalize_name(requirement.name))
    return MODULES.get(name, name.replace("-", "_"))


def imported(*folders: str) -> set[str]:
    found: set[str] = set()
    for node in nodes(*folders):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"fftmoe"}


def named(folder: str) -> set[str]:
    """The texts of a folder's code, among them the names of modules that it looks for without importing them."""
    return {node.value for node in nodes(folder) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def nodes(*folders: str) -> Iterator[ast.AST]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from ast.walk(ast.parse(path.read_text()))


def test_whatever_the_package_imports_is_declared_or_comes_with_what_is():
    declared = {module_of(one) for one in AT_RUN_TIME}
    assert imported("src") - declared == set(COMES_WITH)


@pytest.mark.parametrize(("module", "owner"), COMES_WITH.items())
def test_what_comes_with_a_dependency_is_one_of_its_own(module: str, owner: str):
    needed = [Requirement(line) for line in importlib.metadata.requires(owner) or []]
    assert module in {module_of(one) for one in needed if one.marker is None}


def test_whatever_is_declared_is_used():
    used = imported("src") | named("src")
    assert [one.name for one in AT_RUN_TIME if module_of(one) not in used] == []


def test_whatever_is_declared_for_development_is_used():
    used = imported("tests", "benchmarks")
    by_import = {one.name for one in EXTRAS["dev"] if module_of(one) in used}
    assert {one.name for one in EXTRAS["dev"]} - by_import == set(TOOLS)


@pytest.mark.parametrize(("tool", "where", "words"), [(tool, *call) for tool, call in TOOLS.items()])
def test_a_tool_is_called_where_the_table_says(tool: str, where: str, words: str):
    assert words in (ROOT / where).read_text(), tool


@pytest.mark.parametrize("requirement", [*AT_RUN_TIME, *EXTRAS["dev"]], ids=str)
def test_the_tested_version_is_an_allowed_one(requirement: Requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_servers_and_sites_need_no_ray_and_the_simulation_adds_only_that():
    [flower], [simulation] = EXTRAS["flower"], EXTRAS["simulation"]
    assert (flower.name, flower.extras) == ("flwr", set())
    assert (simulation.name, simulation.extras) == ("flwr", {"simulation"})
    assert flower.specifier == simulation.specifier


def test_the_floors_of_the_page_on_security_are_those_that_are_declared():
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ≥ ([\d.]+) \|", page.split("## Versions")[1], flags=re.MULTILINE)
    declared = {one.name: one for one in (*AT_RUN_TIME, *EXTRAS["dev"])}
    assert {name for name, _ in rows} >= {"torch", "transformers", "pillow", "datasets", "onnx", "flwr", "pyarrow"}
    for name, floor in rows:
        assert floor in {part.version for part in declared[name].specifier if part.operator == ">="}, name
