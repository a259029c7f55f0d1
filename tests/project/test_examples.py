"""The examples print what they announce, run as a reader would run them."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from fftmoe.setup.export import FORMATS
from fftmoe.tasks import TASKS

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in (EXAMPLES / "notebooks").glob("*.ipynb"))
FROM_A_RECIPE = {
    "own_aggregator.py": "accuracy with shortened changes: ",
    "own_export.py": "difference of logits ",
    "own_loss.py": "accuracy with sparse changes: ",
    "own_method.py": "accuracy with drawn experts: ",
    "own_partitioner.py": "accuracy with clients of different size: ",
    "own_task.py": "accuracy of the average class: ",
}
OWN = FROM_A_RECIPE | {"own_family.py": "blocks with experts: [1, 2] of 0 to 2"}
SAYS = OWN | {
    "federate_in_python.py": "parameters in experts and routers",
    "generate.py": "continued count: [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]",
    "trainer.py": "accuracy over 24 chapters: ",
}


def run(name: str, *arguments: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", [name, *arguments])
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [(table, dict(table)) for table in (TASKS, FORMATS)]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:  # two examples change these tables
        for table, before in tables:
            table.clear()
            table.update(before)


def test_every_example_has_its_expected_output():
    assert SCRIPTS == sorted(SAYS)
    assert NOTEBOOKS == ["adapter_in_trainer.ipynb", "first_federation.ipynb"]


@pytest.mark.parametrize("name", sorted(OWN))
def test_an_example_of_an_extension_has_at_most_40_lines(name: str):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", [*sorted(FROM_A_RECIPE), "federate_in_python.py"])
def test_an_example_takes_another_recipe(
    name: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(name, str(recipe_file), "federation.rounds=1", "evaluation.local_only=false", patch=monkeypatch)
    assert SAYS[name] in capsys.readouterr().out


def test_the_generating_model_counts_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run("generate.py", patch=monkeypatch)
    assert SAYS["generate.py"] in capsys.readouterr().out


def test_experts_on_a_family_that_is_not_in_the_table_lower_its_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run("own_family.py", patch=monkeypatch)
    said = capsys.readouterr().out
    assert SAYS["own_family.py"] in said
    before, after = re.findall(r"\d+\.\d+", said)
    assert float(after) < float(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_unchanged(name: str, tmp_path: Path):
    few = ["80"] if name == "trainer.py" else []
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *few],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert SAYS[name] in finished.stdout
    assert not list(tmp_path.iterdir())


def code_cells(name: str) -> list[Any]:
    notebook = nbformat.read(EXAMPLES / "notebooks" / name, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_its_cells_gave(name: str):
    """Of one pass from top to bottom, without an error, a progress bar, or the name of a folder of a machine."""
    cells = code_cells(name)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell.outputs or not isinstance(ast.parse(cell.source).body[-1], ast.Expr), cell.source
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert "stderr" not in {output.get("name") for output in outputs}
    shown = json.dumps(outputs)
    assert re.findall(r"(?<![\w.:/])/\w[\w.-]*/|[A-Za-z]:\\\\|file://", shown) == []
    assert len(shown) < 20_000


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in NOTEBOOKS],
)
@pytest.mark.filterwarnings("ignore")  # warnings of the notebook packages, which change with their versions
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path):
    """And each cell gives outputs of the same kinds as those that are kept; figures differ between processors."""
    notebook = nbformat.read(EXAMPLES / "notebooks" / name, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    done = [cell for cell in client.execute().cells if cell.cell_type == "code"]
    for now, kept in zip(done, code_cells(name), strict=True):
        assert now.source == kept.source
        assert kinds(now) == kinds(kept), now.source
    assert done[-1].outputs[-1].output_type == "execute_result"
    if name == "adapter_in_trainer.ipynb":
        for cells in (done, code_cells(name)):
            assert cells[-2].outputs[-1].data["text/plain"] == str([*range(5, 17)])


def kinds(cell: Any) -> set[str]:
    """The kinds of a cell's outputs, without progress bars and warnings."""
    return {output.output_type for output in cell.outputs if output.get("name") != "stderr"}
