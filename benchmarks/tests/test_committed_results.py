"""No script replaces a committed result by nothing, or by less than it has."""

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1]
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
WRITERS = {"common.py", "grid_results.py"}  # of which the second keeps the cells of the file that it does not run


@pytest.fixture
def common(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("common")


def _calls(file: Path, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if name in (getattr(call.func, "attr", ""), getattr(call.func, "id", ""))]


def _parts() -> dict[str, list[str]]:
    """By script, under which key of its results stands what it measured."""
    return {file.name: [ast.literal_eval(call.args[2]) for call in _calls(file, "write_result")] for file in SCRIPTS}


@pytest.mark.parametrize("file", [file for file in SCRIPTS if file.name not in WRITERS], ids=lambda file: file.name)
def test_a_script_writes_results_with_write_result_only(file: Path):
    """Whatever else it writes is no JSON of results: it has no indent, as only files that people read have."""
    dumps = [call for call in _calls(file, "dumps") if any(word.arg == "indent" for word in call.keywords)]
    assert [call.lineno for call in dumps] == []


PARTS = {part for parts in _parts().values() for part in parts}
HELD = {file: json.loads(file.read_text()) for file in sorted((BENCHMARKS / "results").glob("*.json"))}


@pytest.mark.parametrize("file", [file for file in HELD if PARTS & HELD[file].keys()], ids=lambda file: file.name)
@pytest.mark.parametrize("left", ["nothing", "all but one"])
def test_a_committed_file_stays_where_less_is_found(common: Any, tmp_path: Path, file: Path, left: str):
    held, kept = HELD[file], tmp_path / file.name
    for part in PARTS & held.keys():
        kept.write_bytes(file.read_bytes())
        whole = held[part]
        fewer = dict([*whole.items()][1:]) if isinstance(whole, dict) else _without_one(whole)
        if left == "nothing" or not fewer:
            fewer = type(whole)()
        with pytest.raises(SystemExit) as end:
            common.write_result(kept, {**held, part: fewer}, part)
        assert isinstance(end.value.code, str)  # Python prints it and exits with status 1
        assert str(kept) in end.value.code
        assert len(end.value.code.splitlines()) == 1
        assert kept.read_bytes() == file.read_bytes()
        common.write_result(kept, held, part)
        assert json.loads(kept.read_text()) == held


def _without_one(measured: list[Any]) -> list[Any]:
    done = next(i for i, one in enumerate(measured) if not isinstance(one, dict) or one.get("status", "done") == "done")
    return measured[:done] + measured[done + 1 :]


def test_what_is_less_is_beside_the_file(common: Any, tmp_path: Path):
    file = tmp_path / "some.json"
    common.write_result(file, {"runs": {"a": 1, "b": 2}}, "runs")
    with pytest.raises(SystemExit, match="has 2 runs and stays as it is; the 1 that were found are in"):
        common.write_result(file, {"runs": {"c": 3}}, "runs")
    assert json.loads((tmp_path / "some.found.json").read_text()) == {"runs": {"c": 3}}
    with pytest.raises(SystemExit, match="found no runs"):
        common.write_result(tmp_path / "other.json", {"runs": {}}, "runs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.found.json", "some.json"]


def test_cells_that_did_not_run_do_not_count(common: Any, tmp_path: Path):
    file, done, waiting = tmp_path / "some.json", {"status": "done"}, {"status": "not run"}
    common.write_result(file, {"cells": [done, done, waiting]}, "cells")
    with pytest.raises(SystemExit, match="has 2 cells"):
        common.write_result(file, {"cells": [done, waiting, waiting]}, "cells")
    common.write_result(file, {"cells": [done, done]}, "cells")


def test_kept_rounds_without_runs_says_so(common: Any, monkeypatch, tmp_path: Path):
    committed = BENCHMARKS / "results" / "kept_rounds.json"
    (tmp_path / committed.name).write_bytes(committed.read_bytes())
    places = ["--work", str(tmp_path / "none"), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["kept_rounds.py", *places])
    with pytest.raises(SystemExit, match="found no runs"):
        importlib.import_module("kept_rounds").main()
    assert (tmp_path / committed.name).read_bytes() == committed.read_bytes()
