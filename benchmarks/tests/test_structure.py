"""Figures of small source trees that are written here."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TREE = {
    "__init__.py": "from fftmoe.data import load as load\n",
    "cli.py": "from fftmoe import data\nfrom fftmoe.data import load\n\n\ndef main():\n    data.size(load())\n",
    "data/__init__.py": "from fftmoe.data.read import load as load\nfrom .read import size as size\n",
    "data/read.py": "from . import rows\n\nLIMIT = 3\n\n\ndef load():\n    return rows.LIMIT\n\n\ndef size(x): ...\n",
    "data/rows.py": "LIMIT: int = 5\nFIRST, LAST = 0, 1\n",
}


@pytest.fixture
def structure(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("structure")


def written(checkout: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = checkout / "src" / "fftmoe" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return checkout


def test_files_and_lines_are_counted_by_package(structure: Any, tmp_path: Path):
    tests = tmp_path / "benchmarks" / "tests" / "test_a.py"
    tests.parent.mkdir(parents=True)
    tests.write_text("a = 1\nb = 2\n")
    figures = structure.measure(written(tmp_path, TREE), [])
    assert figures.packages == {
        "(top level)": "2 files, 7 lines",
        "data": "3 files, 14 lines",
        "total": "5 files, 21 lines",
    }
    assert figures.counts["tests"] == "1 files, 2 lines"


def test_a_name_that_a_package_passes_on_is_used_by_those_who_take_it(structure: Any, tmp_path: Path):
    """Only `cli` uses `read`, through the package, and only `read` uses `rows`."""
    figures = structure.measure(written(tmp_path, TREE), [])
    assert figures.lists["modules used by exactly one other"] == [
        "fftmoe.data.read by fftmoe.cli",
        "fftmoe.data.rows by fftmoe.data.read",
    ]
    used_twice = {**TREE, "use.py": "import fftmoe.data as d\n\nprint(d.size(d.load()))\n"}
    figures = structure.measure(written(tmp_path, used_twice), [])
    assert figures.lists["modules used by exactly one other"] == ["fftmoe.data.rows by fftmoe.data.read"]


def test_a_package_that_calls_what_it_imports_uses_it(structure: Any, tmp_path: Path):
    text = "from fftmoe.a import build\n\nMADE = build()\n"
    figures = structure.measure(written(tmp_path, {"__init__.py": text, "a.py": "def build(): ...\n"}), [])
    assert figures.lists["modules used by exactly one other"] == ["fftmoe.a by fftmoe"]


def test_names_of_several_modules(structure: Any, tmp_path: Path):
    more = {"rows.py": "from fftmoe.cli import main as main\n\nclass LAST: ...\n\n__all__ = ['LAST']\n"}
    figures = structure.measure(written(tmp_path, {**TREE, **more}), [])
    assert figures.lists["names defined in two or more modules"] == [
        "LAST in fftmoe.data.rows, fftmoe.rows",
        "LIMIT in fftmoe.data.read, fftmoe.data.rows",
    ]


def test_cycles_through_functions_and_for_types(structure: Any, tmp_path: Path):
    files = {
        "a.py": "import fftmoe.b\n",
        "b.py": "def f():\n    from fftmoe.c import g\n    g()\n",
        "c.py": "from fftmoe import a\n\n\ndef g(): ...\n",
        "d.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from fftmoe.e import E\n",
        "e.py": "from fftmoe import d\n\n\nclass E: ...\n",
    }
    lists = structure.measure(written(tmp_path, files), []).lists
    assert lists["import cycles"] == ["fftmoe.a, fftmoe.b, fftmoe.c"]
    assert lists["import cycles, with imports for types"] == ["fftmoe.a, fftmoe.b, fftmoe.c", "fftmoe.d, fftmoe.e"]


def test_long_functions_and_files(structure: Any, tmp_path: Path):
    body = "        pass\n" * 39
    text = f"class C:\n    @property\n    def long(self):\n{body}\n    def short(self):\n{body}\n"
    figures = structure.measure(written(tmp_path, {"a.py": text, "long.py": "x = 1\n" * 301}), [])
    assert figures.lists["functions above 40 lines"] == ["a.C.long (41)"]
    assert figures.counts["longest function, 2"] == "a.C.short (40)"
    assert figures.lists["files above 300 lines"] == ["long.py (301)"]


def test_two_checkouts_stand_side_by_side(structure: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = written(tmp_path / "1", {"a.py": "def f(r):\n    r.federation.rounds = 3\n    return r.rounds\n"})
    after = written(tmp_path / "2", {"b/a.py": "def f(rounds):\n    return rounds\n"})
    structure.main([str(before), str(after), "--key", "federation.rounds"])
    lines = capsys.readouterr().out.splitlines()
    assert "|  | before | after |" in lines
    assert "| b | – | 1 files, 2 lines |" in lines
    assert "| attributes of the name of federation.rounds | 2 places in 1 files | 0 places in 0 files |" in lines
    assert lines[-1] == "- a.py (2)"
    with pytest.raises(SystemExit, match="has no folder src/fftmoe"):
        structure.main([str(tmp_path)])
