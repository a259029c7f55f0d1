"""Mistakes of a new user's first hour: their messages and exit statuses, and that nothing was written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
import yaml

from fftmoe.cli.app import app
from shared_fixtures import Cli

TRAIN = "text,label\n" + "".join(f"ash bay {c},{c}\n" for c in ("red", "blue", "green") * 11)
TEST = "text,label\n" + "".join(f"cod dew {c},{c}\n" for c in ("red", "blue", "green") * 3)


@dataclass(frozen=True)
class Desk:
    """Where a new user sits: a folder with a recipe and data that work, until something is changed."""

    folder: Path
    values: dict[str, Any]

    def run(self, *overrides: str) -> list[str]:
        return ["run", str(self.folder / "mine.yaml"), *(part for text in overrides for part in ("--set", text))]

    def write(self, **sections: Any) -> list[str]:
        """A recipe with these sections, each merged into what is there."""
        values = dict(self.values)
        for name, section in sections.items():
            values[name] = {**values[name], **section} if isinstance(section, dict) else section
        (self.folder / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return self.run()

    def edit(self, old: str, new: str) -> list[str]:
        """The recipe with other text in it."""
        path = self.folder / "mine.yaml"
        text = path.read_text()
        assert old in text, text
        path.write_text(text.replace(old, new))
        return self.run()

    def data(self, train: str = TRAIN, test: str = TEST, encoding: str = "utf-8") -> list[str]:
        for name, text in (("train", train), ("test", test)):
            (self.folder / "data" / f"{name}.csv").write_bytes(text.encode(encoding))
        return self.run()

    def model_without(self, name: str) -> list[str]:
        shutil.copytree(self.values["backbone"]["model"], self.folder / "model")
        (self.folder / "model" / name).unlink()
        return self.run(f"backbone.model={self.folder / 'model'}")

    def occupied(self) -> list[str]:
        (self.folder / "runs" / "taken").mkdir(parents=True)
        (self.folder / "runs" / "taken" / "notes.txt").write_text("mine")
        return [*self.run(), "--output", str(self.folder / "runs" / "taken")]


@pytest.fixture
def desk(recipe_values: dict[str, Any], tmp_path: Path) -> Desk:
    (tmp_path / "data").mkdir()
    desk = Desk(
        tmp_path, {**recipe_values, "data": {"source": str(tmp_path / "data"), "max_length": 13, "validation": "off"}}
    )
    desk.data()
    desk.write()
    return desk


Mistake = Callable[[Desk], list[str]]
MISTAKES: dict[str, tuple[Mistake, tuple[str, ...]]] = {
    # The command line.
    "a recipe that is not there": (lambda d: ["run", "mein.yaml"], ("'mein.yaml'", "no recipe file")),
    "a shipped recipe misspelt": (lambda d: ["run", "quick-start"], ("did you mean 'quickstart'",)),
    "a verb misspelt": (lambda d: ["evalute"], ("evalute",)),
    "a flag misspelt": (lambda d: ["run", "--worker", "2"], ("--worker", "--workers")),
    "--set without =": (lambda d: d.run("federation.rounds"), ("'federation.rounds'", "section.key=value")),
    "no workers": (lambda d: [*d.run(), "--workers", "0"], ("--workers", "0", ">=1")),
    "an engine misspelt": (lambda d: [*d.run(), "--engine", "flwr"], ("'flwr'", "did you mean 'flower'")),
    "a folder of data in the place of a recipe": (lambda d: ["run", str(d.folder)], ("a folder", "fftmoe init")),
    "a CSV in the place of a recipe": (lambda d: ["run", str(d.folder / "data" / "train.csv")], ("fftmoe init",)),
    # The recipe.
    "a tab": (lambda d: d.edit("  max_length", "\tmax_length"), ("mine.yaml", "line", "tab", "spaces")),
    "wrong indentation": (lambda d: d.edit("  max_length", "   max_length"), ("mine.yaml", "line")),
    "a key misspelt": (lambda d: d.run("federation.learning_rat=1"), ("federation.learning_rat", "'learning_rate'")),
    "a section misspelt": (lambda d: d.edit("budgets:", "budget:"), ("'budget'", "did you mean 'budgets'")),
    "a section left out": (lambda d: d.write(adapter=None), ("adapter",)),
    "a word for a number": (lambda d: d.run("federation.rounds=ten"), ("federation.rounds", "'ten'")),
    "a name that YAML reads as false": (lambda d: d.run("data.label=no"), ("data.label", "False", "quote")),
    "a tier that YAML reads as true": (lambda d: d.edit("name: small", "name: on"), ("name", "True", "quote")),
    "more clients than rows": (lambda d: d.run("partition.num_clients=70"), ("num_clients=70", "33")),
    "a cohort above the clients": (
        lambda d: d.run("federation.clients_per_round=9"),
        ("clients_per_round=9", "num_clients=7", "lower it to 7"),
    ),
    "fractions that do not sum to 1": (lambda d: d.run("budgets.small.fraction=0.5"), ("0.9", "sum to 1")),
    "more experts for a token than are held": (
        lambda d: d.run("budgets.small.top_k=3"),
        ("'small'", "top_k=3", "experts=2", "lower top_k to 2"),
    ),
    "more experts than there are": (lambda d: d.run("budgets.large.experts=8"), ("experts=8", "num_experts=5")),
    "a method misspelt": (lambda d: d.run("method=fft_moe"), ("'fft_moe'", "did you mean 'fft-moe'")),
    "a text too long for the model": (lambda d: d.run("data.max_length=512"), ("512", "17", "lower it to 17")),
    # The data.
    "no data": (lambda d: d.run("data.source=./date"), ("./date", "neither a file nor a folder", "train")),
    "columns of other names": (
        lambda d: d.data(TRAIN.replace("text,label", "sentence,class"), TEST),
        ("test.csv", "'sentence'", "text, label", "data.text"),
    ),
    "semicolons in some rows": (lambda d: d.data(TRAIN + "cod;blue\n"), ("train.csv", "row 34 has 1 cell")),
    "latin-1": (lambda d: d.data(TRAIN.replace("ash", "Übung"), encoding="latin-1"), ("train.csv", "UTF-8")),
    "an empty file": (lambda d: d.data(train=""), ("train.csv", "is empty")),
    "only a header": (lambda d: d.data(train="text,label\n"), ("train.csv", "no rows")),
    "one label": (lambda d: d.data(re.sub("red$|green$", "blue", TRAIN, flags=re.M)), ("one label", "'blue'")),
    "a label only in the test file": (lambda d: d.data(test=TEST + "elm,violet\n"), ("test.csv", "'violet'")),
    "a text left out": (lambda d: d.data(train=TRAIN + ",red\n"), ("train.csv", "row 34")),
    # The model.
    "a model that is not there": (lambda d: d.run("backbone.model=./bert"), ("./bert", "does not exist")),
    "a model without config": (lambda d: d.model_without("config.json"), ("model", "no config.json")),
    "a model without tokenizer": (lambda d: d.model_without("tokenizer.json"), ("model", "no tokenizer")),
    # The run folder.
    "an output that is taken": (lambda d: d.occupied(), ("taken", "--output")),
    "resume of no run": (lambda d: ["resume", str(d.folder)], ("is not a run folder",)),
    "predict on no run": (lambda d: ["predict", str(d.folder), "red"], ("is not a run folder",)),
    "evaluate on no run": (lambda d: ["evaluate", str(d.folder / "runs")], ("is not a run folder",)),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_one_line(status: int, err: str, *words: str) -> None:
    """One line for a person, and no trace of the program."""
    assert status == 2, err
    assert err.startswith("fftmoe: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert "https://errors.pydantic.dev" not in err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_with_a_remedy_and_leaves_nothing(
    cli: Cli, desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
):
    mistake, words = MISTAKES[name]
    arguments = mistake(desk)
    monkeypatch.chdir(desk.folder)
    before = files(desk.folder)
    outcome = cli(*arguments)
    assert_one_line(outcome.status, outcome.err, *words)
    assert files(desk.folder) == before


@pytest.mark.parametrize("missing", ["flwr", "ray"])
def test_the_simulation_without_its_extra(cli: Cli, desk: Desk, monkeypatch: pytest.MonkeyPatch, missing: str):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(desk.folder)
    before = files(desk.folder)
    outcome = cli(*desk.run(), "--engine", "flower")
    assert_one_line(outcome.status, outcome.err, f"needs {missing}", "pip install 'fftmoe[simulation]'")
    assert files(desk.folder) == before


def test_a_run_is_not_resumed_in_a_simulation_without_its_extra(cli: Cli, desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    begun = desk.folder / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((desk.folder / "mine.yaml").read_text())
    before = files(desk.folder)
    outcome = cli("resume", begun, "--set", "engine.kind=flower")
    assert_one_line(outcome.status, outcome.err, "needs ray", "pip install 'fftmoe[simulation]'")
    assert files(desk.folder) == before


def test_a_deployment_without_its_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    outcome = cli("deploy", "status", "nowhere")
    assert_one_line(outcome.status, outcome.err, "Flower", "pip install 'fftmoe[flower]'")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_may_not_be_written(cli: Cli, desk: Desk):
    (desk.folder / "locked").mkdir(mode=0o500)
    outcome = cli(*desk.run(), "--output", desk.folder / "locked" / "run")
    assert_one_line(outcome.status, outcome.err, "locked", "--output")


def test_a_learning_rate_that_diverges_fails_the_run_and_names_it(cli: Cli, desk: Desk):
    outcome = cli(
        *desk.run("head.learning_rate=1e30", "federation.learning_rate=1e30", "trackers=[]"),
        "--output",
        desk.folder / "run",
    )
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    for word in ("the loss became", "in step", "lower federation.learning_rate", "head.learning_rate"):
        assert word in outcome.err


def test_resume_of_a_finished_run(cli: Cli, desk: Desk):
    folder = desk.folder / "run"
    short = ("federation.rounds=1", "evaluation.local_only=false", "trackers=[]")
    assert cli(*desk.run(*short), "--output", folder).status == 0
    before = files(folder)
    outcome = cli("resume", folder)
    assert_one_line(outcome.status, outcome.err, "has finished", "fftmoe run")
    assert files(folder) == before


def test_help_reads_as_a_page_in_80_columns(cli: Cli):
    page = subprocess.run(
        [sys.executable, "-c", "import fftmoe.cli.app as c; c.main(['--help'])"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "\x1b" not in page
    assert "…" not in page
    assert "..." not in page.replace("[ARGS]...", "")  # no summary that was cut off
    for heading in ("Start:", "Use a finished run:", "Compare methods:", "Deploy on many machines:", "Exit status:"):
        assert heading in page
    assert cli("--version").out.startswith("fftmoe 0.")


def test_no_summary_of_a_verb_of_deploy_is_cut_off(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    summaries = re.findall(r"^  [a-z]+  +(.*)$", cli("deploy", "--help").out, flags=re.MULTILINE)
    assert len(summaries) == 6
    assert all(summary.endswith(".") and "..." not in summary for summary in summaries)


@pytest.mark.parametrize(
    "verb", ["init", "run", "resume", "plan", "compare", "evaluate", "predict", "personalize", "chat", "report"]
)
def test_the_help_of_every_verb_has_an_example(cli: Cli, verb: str):
    assert f"Example: fftmoe {verb}" in cli(verb, "--help").out


GROUP = typer.main.get_group(app)
COMMANDS = {
    " ".join(path): command
    for name, verb in GROUP.commands.items()
    for path, command in [((name,), verb), *(((name, sub), c) for sub, c in getattr(verb, "commands", {}).items())]
    if not hasattr(command, "commands")
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_verb_explains_each_argument_and_option(cli: Cli, command: str):
    page = cli(*command.split(), "--help").out
    assert "\\" not in page
    assert page.count(" [required]") == sum(parameter.required for parameter in COMMANDS[command].params)
    letters = "".join(page.split())  # a line may break within a word that has a hyphen
    hints = get_type_hints(COMMANDS[command].callback, include_extras=True)
    declared = {name: info.help for name, hint in hints.items() for info in getattr(hint, "__metadata__", ())}
    assert declared.keys() == {parameter.name for parameter in COMMANDS[command].params} - {"help"}
    for name, text in declared.items():
        assert text, name
        assert "".join(text.split()) in letters, name


@pytest.mark.parametrize("command", ["init", "deploy server"])
def test_a_missing_argument_leads_to_the_help_of_its_verb(cli: Cli, command: str):
    outcome = cli(*command.split())
    assert_one_line(outcome.status, outcome.err, "Missing argument", f"{command} --help")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--nope"], ["run", "quikstart"], ["run", "--set", "seed=x"]]
)
def test_what_needs_no_model_loads_none(arguments: list[str]):
    """Torch, transformers and PEFT take seconds to import; a typo is reported before that."""
    script = (
        f"import sys, fftmoe.cli.app as c\ntry: c.main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import fftmoe.adapter, peft",
        *(
            pytest.param(imports, marks=pytest.mark.slow)
            for imports in (
                "import peft, fftmoe",
                "import fftmoe, peft; fftmoe.load_backbone",
                "import fftmoe, peft; fftmoe.MoeAdapterConfig",
            )
        ),
    ],
)
def test_peft_knows_the_adapter_after(imports: str):
    """What the snippets of the terminal, the model card and the documentation do before `PeftModel.from_pretrained`."""
    script = (
        f"{imports}\nfrom peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "print(sorted(str(k) for k in known if 'MOE' in str(k)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "FFT_MOE" in done.stdout


def test_import_fftmoe_does_not_change_the_import_system():
    script = "import sys; before = [*sys.meta_path]; import fftmoe; assert sys.meta_path == before, sys.meta_path"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_shell_completes_recipes(tmp_path: Path):
    (tmp_path / "quirk.yaml").write_text("")
    typed = {"COMP_WORDS": "fftmoe run qui", "COMP_CWORD": "2", "_FFTMOE_COMPLETE": "complete_bash"}
    script = "import sys; sys.argv[0] = 'fftmoe'; import fftmoe.cli.app as c; c.main([])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **typed},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["quickstart", "quirk.yaml"], done
