"""Every `-k` on a page selects a test: its words stand in the names of tests or in the cases that they are given."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "LOG.md")]
TESTS = [file for folder in ("tests", "benchmarks/tests") for file in (ROOT / folder).rglob("test_*.py")]
SELECTION = re.compile(r"`([^`\n]*test_\w+\.py[^`\n]*? -k (?:\"([^\"]+)\"|(\w+)))")


def selectable(module: ast.Module) -> Iterator[str]:
    """Names of tests, and the texts of what stands outside the bodies of functions: cases, their names, marks."""
    for node in module.body:
        functions = [f for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and f.name.startswith("test")]
        for function in functions:
            yield function.name
            for decorator in function.decorator_list:
                yield ast.unparse(decorator)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.ClassDef):
            yield ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_selection_of_a_page_selects_something(page: Path):
    for command, quoted, word in SELECTION.findall(page.read_text()):
        files = [file for file in TESTS if file.name in re.findall(r"test_\w+\.py", command)]
        known = " ".join(text for f in files for text in selectable(ast.parse(f.read_text()))).lower()
        words = set(re.findall(r"\w+", (quoted or word).lower())) - {"and", "or", "not"}
        assert [w for w in words if w not in known] == [], command


def test_pages_have_selections():
    assert sum(len(SELECTION.findall(page.read_text())) for page in PAGES) > 50
