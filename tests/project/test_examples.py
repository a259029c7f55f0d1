"""The examples do what they say, run as a person would run them."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in (EXAMPLES / "notebooks").glob("*.ipynb"))
OWN = {
    "own_aggregator.py": "accuracy with shortened changes: ",
    "own_method.py": "accuracy with drawn experts: ",
    "own_partitioner.py": "accuracy with unlike sizes: ",
}
SAYS = OWN | {
    "federate_in_python.py": "numbers in experts and routers",
    "generate.py": "counts on: [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]",
    "trainer.py": "accuracy over 24 chapters: ",
}


def run(name: str, *arguments: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_every_example_is_known_here():
    assert SCRIPTS == sorted(SAYS)
    assert NOTEBOOKS == ["adapter_in_trainer.ipynb", "first_federation.ipynb"]


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_part_of_ones_own_takes_fewer_than_forty_lines(name: str):
    tree = ast.parse((EXAMPLES / name).read_text())
    code = {line for node in tree.body[1:] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    written = (EXAMPLES / name).read_text().splitlines()
    assert len([line for line in code if written[line - 1].strip()]) < 40


@pytest.mark.parametrize("name", [*sorted(OWN), "federate_in_python.py"])
def test_an_example_takes_another_recipe(
    name: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(name, str(recipe_file), "federation.rounds=1", "evaluation.local_only=false", patch=monkeypatch)
    assert SAYS[name] in capsys.readouterr().out


def test_a_model_that_generates_counts_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run("generate.py", patch=monkeypatch)
    assert SAYS["generate.py"] in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_as_it_stands(name: str, tmp_path: Path):
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


@pytest.mark.parametrize(
    "name",
    [name if name == "adapter_in_trainer.ipynb" else pytest.param(name, marks=pytest.mark.slow) for name in NOTEBOOKS],
)
@pytest.mark.filterwarnings("ignore")  # what the notebook machinery warns of is not ours, and changes with its versions
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path):
    notebook = nbformat.read(EXAMPLES / "notebooks" / name, as_version=4)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code"), "kept without outputs"
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    done = client.execute()
    last = [cell for cell in done.cells if cell.cell_type == "code"][-1]
    assert last.outputs[-1].output_type == "execute_result"
    if name == "adapter_in_trainer.ipynb":
        counted = done.cells[-3].outputs[-1].data["text/plain"]
        assert counted == str([*range(5, 17)])
