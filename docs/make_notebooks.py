"""Run the notebooks of examples/notebooks from top to bottom, and keep what their cells show.

    python docs/make_notebooks.py                        # both; takes about two minutes
    python docs/make_notebooks.py adapter_in_trainer     # one of them

Progress bars and the times of the cells are left out. A notebook whose output names a folder of this machine is not
written.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"


def run(path: Path) -> None:
    """Run one notebook in an empty folder, and write it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=900, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            if tempfile.gettempdir() in str(cell.outputs):
                raise SystemExit(f"{path.name}: an output names a folder of this machine: {cell.outputs}")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    text = nbformat.writes(notebook)
    path.write_text(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if path.stem in sys.argv[1:] or len(sys.argv) == 1:
            run(path)
