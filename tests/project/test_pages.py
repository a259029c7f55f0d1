"""The tutorials do what they say when their commands and their Python are run as they stand, in order."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fftmoe.cli.app import app
from fftmoe.config import load_recipe, parse_recipe

ROOT = Path(__file__).parents[2]
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


# The other pages show parts of recipes, and commands for data and machines that are not here


def shown(language: str) -> list[tuple[str, str]]:
    """(page, block) of all code blocks of this language in the docs and the README."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [
        (p, re.findall(rf"^```{language}\n(.*?)^```", p.read_text(), flags=re.DOTALL | re.MULTILINE)) for p in pages
    ]
    return [(page.name, block) for page, blocks in found for block in blocks]


def merged(base: Any, part: Any) -> Any:
    """The recipe with this part of one; `...` in a part stands for whatever else there is."""
    if not isinstance(base, dict) or not isinstance(part, dict):
        return part
    known = {key: value for key, value in part.items() if key != "..."}
    return {**base, **{key: merged(base.get(key), value) for key, value in known.items()}}


@pytest.mark.parametrize(("page", "block"), shown("yaml"))
def test_parts_of_recipes_are_what_a_recipe_may_say(page: str, block: str):
    part = yaml.safe_load(block)
    base = load_recipe("quickstart").model_dump(mode="json")
    whole = part if "backbone" in part else merged(base, part)
    parse_recipe(whole, page)


def command_lines() -> list[tuple[str, str]]:
    """(page, line) of all commands of ours that any page shows."""
    blocks = [pair for language in ("", "sh", "bash", "console", "text") for pair in shown(language)]
    lines = [
        (page, line.removeprefix("$ ")) for page, block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    return sorted({(page, line) for page, line in lines if re.match(r"fftmoe [a-z]", line)})


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_that_are_shown_have_verbs_and_flags_that_there_are(page: str, line: str):
    command: Any = typer.main.get_command(app)
    words = shlex.split(line.split(" | ")[0].split(" &")[0], comments=True)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not getattr(command, "commands", {}), f"{line} names no verb"
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= flags | {"--help"}
