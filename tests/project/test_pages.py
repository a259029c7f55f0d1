"""The tutorials do what they say when their commands and their Python run in order.

As written, and as a reader runs them, they take minutes: `make test-all` does that. `make test` runs each command and
each block of Python in this process, on an eighth of the builtin data, with fewer steps of training, and with a small
model in the place of the builtin one.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import typer
import yaml

from fftmoe.backbones import builtin, resolve_model
from fftmoe.cli.app import app
from fftmoe.config import complete_recipe, read_recipe
from fftmoe.data import sources
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.setup.cells import make_grid
from shared_fixtures import Cli

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
# What must be there afterwards.
LEFT = {
    "laptop": ("runs/first/report.html", "runs/first/adapter/adapter_model.safetensors"),
    "research": ("runs/compared/comparison.json", "runs/own/summary.json"),
    "federation": ("mine.yaml", "budget.yaml", "for-the-hub/README.md", "for-small-devices/adapter_config.json"),
}
LESS_WORK = (
    "federation.rounds=1",
    "federation.local_epochs=null",
    "federation.local_steps=1",
    "federation.clients_per_round=3",
    "data.train_examples=400",
    "data.test_examples=40",
    "evaluation.local_only=false",
    "evaluation.baselines=[head_only]",
)
LESS = [*(part for setting in LESS_WORK for part in ("--set", setting)), "--workers", "1"]
# What is added to the commands that train, by verb. A comparison loads no head that the page shows how to load.
ADDED = {"run": LESS, "compare": [*LESS, "--set", "head.num_features=32"]}
COMPARES = {"research"}  # the pages that compare many runs take a minute even so
ROWS = 8  # of so many rows of the builtin data one is kept


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the page's commands and Python, in order."""
    found = re.findall(r"```(sh|python)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert found
    return found


@pytest.fixture
def small_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`builtin:minilm` is a random BERT of three small blocks with the same tokenizer, as if the hub's cache had it."""
    real = resolve_model("builtin:minilm")
    folder = tmp_path / "hub" / "small"
    sizes = {"hidden_size": 44, "intermediate_size": 92, "num_attention_heads": 4, "num_hidden_layers": 3}
    torch.manual_seed(0)
    config: Any = transformers.AutoConfig.from_pretrained(real, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(real).save_pretrained(folder)
    monkeypatch.setattr(builtin, "try_to_load_from_cache", lambda _, name: str(folder / name))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in COMPARES)) for page in PAGES],
)
@pytest.mark.usefixtures("small_builtin")
def test_every_command_and_block_of_a_tutorial_works_with_less_to_train(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
):
    monkeypatch.chdir(tmp_path)
    few = {split: rows[::ROWS] for split, rows in stdlib_docs().items()}
    monkeypatch.setattr(sources, "stdlib_docs", lambda: few)
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "__main__"})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True)
            assert program == "fftmoe"
            outcome = cli(*words, *ADDED.get(words[0], []))
            assert outcome.status == 0, f"{line}\n{outcome.out}{outcome.err}"
    assert [name for name in LEFT[page.stem] if not (tmp_path / name).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_written(page: Path, tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # Python is given to the interpreter of this environment.
    script = "\n".join(
        f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON" if language == "python" else text
        for language, text in blocks(page)
    )
    done = subprocess.run(
        ["bash", "-e", "-c", script],
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
    return {**base, **{key: merged(base.get(key, {}), value) for key, value in known.items()}}


@pytest.mark.parametrize(("page", "block"), shown("yaml"))
def test_parts_of_recipes_are_what_a_recipe_may_say(page: str, block: str):
    part = yaml.safe_load(block)
    base, _ = read_recipe("quickstart")
    if "compare" in part:  # makes every cell that the section asks for, each with its recipe
        make_grid(merged(base, part), {})
        return
    whole = part if "backbone" in part else merged(base, part)
    complete_recipe(whole, page, may_read=False)


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
