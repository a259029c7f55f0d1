"""The tutorials do what they say when their commands and their Python are run as they stand, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
# What must be there afterwards.
LEFT = {
    "laptop": ("runs/first/report.html", "runs/first/adapter/adapter_model.safetensors"),
    "research": ("runs/compared/comparison.json", "runs/own/summary.json"),
    "federation": ("mine.yaml", "budget.yaml", "for-the-hub/README.md", "for-small-devices/adapter_config.json"),
}


def script(page: Path) -> str:
    """All blocks of a page as one: Python is handed to the interpreter of this environment."""
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert blocks
    return "\n".join(
        f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON" if kind == "python" else text for kind, text in blocks
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", script(page)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in LEFT[page.stem] if not (tmp_path / name).exists()] == []


def test_every_tutorial_is_run():
    assert {page.stem for page in PAGES} == set(LEFT)
