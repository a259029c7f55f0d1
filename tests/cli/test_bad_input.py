"""What a person gets wrong ends with status 2, one line that says what to change, and no trace on the disk."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fftmoe.cli.app import INTERRUPTED
from shared_fixtures import Cli, Outcome


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("fftmoe: ")
    assert outcome.err.endswith("\n")
    assert outcome.err.count("\n") == 1, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    for word in words:
        assert word in outcome.err, outcome.err


Refuse = Callable[..., None]


@pytest.fixture
def refused(cli: Cli, recipe_file: Path, tmp_path: Path) -> Refuse:
    """`refused("seed=x", words=("seed",))`: neither `run` nor `plan` takes the overrides, and no folder is made."""

    def check(*overrides: str, words: tuple[str, ...], recipe: object = recipe_file, planned: bool = True) -> None:
        sets = [part for override in overrides for part in ("--set", override)]
        output = tmp_path / "deep" / "run"
        assert_refused(cli("run", recipe, "--output", output, *sets), *words)
        assert not output.parent.exists()
        if planned:
            assert_refused(cli("plan", recipe, *sets), *words)

    return check


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.roundz=3", ("'federation.roundz'", "did you mean 'rounds'")),
        ("federation.rounds=many", ("federation.rounds", "'many'")),
        ("federation.rounds", ("--set 'federation.rounds'", "section.key=value")),
        ("federation.rounds=[1", ("--set", "not YAML")),
        ("federation.clients_per_round=8", ("clients_per_round=8", "num_clients=7", "lower it to 7")),
        ("budgets.small.top_k=3", ("'small'", "top_k=3", "experts=2", "lower top_k to 2")),
        ("budgets.large.experts=6", ("'large'", "experts=6", "num_experts=5")),
        ("budgets.small.fraction=0.5", ("sum to 0.9", "make them sum to 1")),
        ("budgets.0={name: s, fraction: 0.6, top_k: 1, memory_mib: 0.001}", ("budgets",)),
        ("partition.alpha=null", ("partition.alpha", "add it")),
        ("partition.alpha=-1", ("partition.alpha", "-1")),
        ("partition.num_clients=500", ("num_clients=500", "113")),
        ("partition.min_examples=16", ("client", "partition.min_examples=16", "raise partition.alpha")),
        ("partition.by=author", ("partition.by", "remove it")),
        ("adapter.blocks=[7]", ("7",)),
        ("adapter.blocks=last-9", ("9",)),
        ("budgets.small.blocks=[0]", ("'small'", "[0]", "[1, 2]")),
        ("data.text=body", ("no column 'body'", "it has text, label, author")),
        ("data.max_length=2", ("data.max_length=2", "raise data.max_length")),
        ("data.source=./nowhere", ("./nowhere", "train")),
        ("data.source=builtin:stdlib", ("builtin:stdlib", "did you mean 'stdlib-docs'")),
        ("backbone.model=./nowhere", ("./nowhere", "does not exist")),
        ("backbone.model=builtin:minilmm", ("builtin:minilmm", "did you mean 'builtin:minilm'")),
        ("method=fedavg", ("method", "'fedavg'")),
    ],
)
def test_a_recipe_that_cannot_be_run(refused: Refuse, override: str, words: tuple[str, ...]):
    refused(override, words=words)


def test_a_budget_that_cannot_hold_one_expert(refused: Refuse):
    # 2 blocks * 180 parameters * 4 bytes * 4 copies = 5760 bytes = 0.0055 MiB.
    tier = "{name: phone, fraction: 1.0, top_k: 1, memory_mib: 0.005}"
    refused(f"budgets=[{tier}]", words=("'phone'", "cannot hold one expert", "memory_mib=0.005", "raise the limit"))


def test_a_tier_without_clients(refused: Refuse):
    refused("budgets.small.fraction=0.95", "budgets.large.fraction=0.05", words=("no client", "0.05", "7 clients"))


def test_a_natural_partition_with_too_large_a_cohort(refused: Refuse):
    overrides = ("partition={kind: natural, by: author}", "federation.clients_per_round=5")
    refused(*overrides, words=("clients_per_round=5", "4 clients", "lower it"))


def test_an_unknown_tracker(refused: Refuse):
    refused("trackers=[tensorbord]", words=("'tensorbord'", "did you mean 'tensorboard'"), planned=False)


def test_texts_longer_than_the_model_can_read(refused: Refuse):
    """The tiny model has 17 positions."""
    refused("data.max_length=18", words=("data.max_length=18", "17 tokens", "lower it to 17"))


def test_no_such_recipe(refused: Refuse):
    refused(recipe="quikstart", words=("'quikstart'", "did you mean 'quickstart'"))


def test_a_label_that_training_never_saw(refused: Refuse, data_folder: Path, tmp_path: Path):
    source = tmp_path / "unseen"
    shutil.copytree(data_folder, source)
    with (source / "test.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["ash bay", "violet", "author-0"])
    refused(f"data.source={source}", words=("test.csv", "'violet'", "never in training"))


def test_a_folder_without_a_test_file(refused: Refuse, data_folder: Path, tmp_path: Path):
    (tmp_path / "half").mkdir()
    shutil.copy(data_folder / "train.csv", tmp_path / "half")
    refused(f"data.source={tmp_path / 'half'}", words=("no test split", "test.parquet (or .csv, .jsonl)"))


@pytest.mark.parametrize(
    ("file", "words"),
    [("model.safetensors", "no weights"), ("config.json", "no config.json"), ("tokenizer.json", "no tokenizer")],
)
def test_a_model_folder_that_lacks_a_file(
    refused: Refuse, backbone_folder: Path, tmp_path: Path, file: str, words: str
):
    model = tmp_path / "model"
    shutil.copytree(backbone_folder, model)
    (model / file).unlink()
    refused(f"backbone.model={model}", words=(str(model), words))


def test_an_output_that_holds_another_run(cli: Cli, recipe_file: Path, tmp_path: Path):
    files = {"config.yaml": "mine", "summary.json": "{}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert_refused(cli("run", recipe_file, "--output", tmp_path), str(tmp_path), "another run", "--output")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_an_output_that_cannot_be_made(cli: Cli, recipe_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        assert_refused(cli("run", recipe_file, "--output", output), str(output), "--output")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_room(refused: Refuse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    refused(words=("3 MiB left", "free some", "--output"), planned=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "{folder}"), ("is not a run folder", "config.yaml")),
        (("predict", "{folder}", "some text"), ("is not a run folder",)),
        (("evaluate", "{folder}/nowhere"), ("is not a run folder",)),
        (("predict", "{folder}"), ("is not a run folder",)),  # reported before anybody types a text
        (("run", "--workers", "0"), ("--workers",)),
        (("run", "--rounds", "3"), ("No such option '--rounds'; did you mean '--set federation.rounds=VALUE'?",)),
        (("run", "--epochs", "3"), ("'--set federation.local_epochs=VALUE'",)),
        (("run", "--learning-rate=3"), ("'--set federation.learning_rate=VALUE'", "'--set head.learning_rate=VALUE'")),
        (("run", "--seed", "3"), ("'--set seed=VALUE'",)),
        (("run", "--worker", "3"), ("No such option '--worker'; did you mean '--workers'?\n",)),
        (
            ("init", "a.csv", "--rounds", "3"),
            (
                "No such option '--rounds'; see: ",
                " init --help",
            ),
        ),
        (
            ("run", "--nothing"),
            (
                "No such option '--nothing'; see: ",
                " run --help",
            ),
        ),
        (("run", "a", "b"), ("unexpected extra argument", "run --help")),
        (("run", "a", "b=c"), ("unexpected extra argument", "run --help")),
        (
            ("run", "a", "--set", "seed=1", "federation.rounds=2"),
            ("(federation.rounds=2)", "--set federation.rounds=V"),
        ),
        (("compare", "a", "data.text=a b", "c"), ("(data.text=a b c)", "--set data.text=VALUE\n")),
        (("predict", "--client", "1", "a", "--set", "seed=1"), ("No such option '--set'",)),
        (("run", "quickstart", "--engine", "locl"), ("engine.kind is 'locl'", "did you mean 'local'")),
        (("evaluate",), ("RUN",)),
        (("train",), ("No such command 'train'; did you mean 'run'?",)),
        (("Eval", "x"), ("did you mean 'evaluate'?",)),
        (("evalute",), ("No such command 'evalute'; did you mean 'evaluate'?\n",)),
        (
            ("nothing",),
            (
                "No such command 'nothing'; see: ",
                " --help",
            ),
        ),
        (
            ("deploy", "train"),
            (
                "No such command 'train'; see: ",
                " deploy --help",
            ),
        ),
        (("deploy", "clinet"), ("did you mean 'client'",)),
    ],
)
def test_a_command_line_that_cannot_be_followed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*(part.format(folder=tmp_path) for part in arguments)), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def short_run(cli: Cli, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    sets = ("federation.rounds=1", "evaluation.local_only=false", "trackers=[]")
    outcome = cli("run", recipe_file, "--output", folder, *(part for s in sets for part in ("--set", s)))
    assert outcome.status == 0, outcome.err
    return folder


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_experts_per_token_than_there_are(cli: Cli, short_run: Path, top_k: int):
    for verb in (("evaluate", short_run), ("predict", short_run, "red")):
        assert_refused(cli(*verb, "--top-k", top_k), f"top_k={top_k}", "5")


def test_a_split_or_label_that_the_run_does_not_know(cli: Cli, short_run: Path, data_folder: Path, tmp_path: Path):
    assert_refused(cli("evaluate", short_run, "--split", "validation"), "no validation split", "it has test, train")
    assert_refused(cli("predict", short_run), "no text", "--file", "standard input")
    assert_refused(cli("predict", short_run, "--file", tmp_path / "nowhere.txt"), "--file", "nowhere.txt")
    source = tmp_path / "other"
    shutil.copytree(data_folder, source)
    for split in ("train", "test"):
        with (source / f"{split}.csv").open("a", newline="") as file:
            csv.writer(file).writerow(["ash bay", "violet", "author-0"])
    assert_refused(cli("evaluate", short_run, "--data", source), "violet", "not trained on")


def test_a_run_that_did_not_finish(cli: Cli, short_run: Path, tmp_path: Path):
    half = tmp_path / "half"
    shutil.copytree(short_run, half)
    shutil.rmtree(half / "adapter")
    (half / "summary.json").unlink()
    assert_refused(cli("evaluate", half), str(half), "did not finish", f"fftmoe resume {half}")


def test_a_finished_run_that_lost_its_adapter_gets_it_again_from_its_checkpoint(
    cli: Cli, short_run: Path, tmp_path: Path
):
    """`evaluate` said that it was not finished, and `resume` that it was."""
    run = tmp_path / "a run"
    shutil.copytree(short_run, run)
    shutil.rmtree(run / "adapter")
    refused = cli("evaluate", run)
    assert_refused(refused, "has lost its adapter/", f"rm '{run / 'summary.json'}' && fftmoe resume '{run}'")
    (run / "summary.json").unlink()
    assert cli("resume", run).status == 0
    whole, again = (folder / "adapter" / "adapter_model.safetensors" for folder in (short_run, run))
    assert again.read_bytes() == whole.read_bytes()
    assert cli("evaluate", run).out == cli("evaluate", short_run).out


@pytest.mark.parametrize("name", ["train.csv.zip", "Train.csv.bz2", "train.xlsx", "train.parquet.gz"])
def test_a_file_of_a_split_that_is_not_read_is_named(
    cli: Cli, recipe_file: Path, data_folder: Path, tmp_path: Path, name: str
):
    """The message said that there was no such split, and to add one."""
    shutil.copy(data_folder / "train.csv", tmp_path / name)
    shutil.copy(data_folder / "test.csv", tmp_path)
    outcome = cli("plan", recipe_file, "--set", f"data.source={tmp_path}")
    assert_refused(
        outcome, f"whose {name} is not read (unpack it, or save it as .parquet, .csv, .tsv, .jsonl, ", "no train"
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("config.yaml", "name: x"), ("adapter/labels.json", "{")],
)
def test_a_run_whose_files_were_damaged(cli: Cli, short_run: Path, tmp_path: Path, file: str, text: str):
    damaged: Any = tmp_path / "damaged"
    shutil.copytree(short_run, damaged)
    (damaged / file).write_text(text)
    assert_refused(cli("evaluate", damaged), str(damaged))


def test_the_end_of_a_pipe_is_not_taken_for_an_interrupt(cli: Cli, recipe_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Status 130 means Ctrl-C or the end of a person's input; anything else that ends says what it was."""

    def failing(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("fftmoe.config.load_whole", fail)

    failing(EOFError("the process that forks others has died"))
    with pytest.raises(EOFError, match="has died"):
        cli("plan", recipe_file)
    failing(KeyboardInterrupt())
    assert cli("plan", recipe_file).status == INTERRUPTED


def test_help_and_no_verb_are_no_faults(cli: Cli):
    outcome = cli("--help")
    assert (outcome.status, outcome.err) == (0, "")
    for verb in ("run", "plan", "evaluate", "predict"):
        assert verb in outcome.out


def test_some_tier_must_hold_every_adapted_block(refused: Refuse):
    """Otherwise no client could use the whole pool, and what is saved would lack a block that others trained."""
    refused(
        "budgets.small.blocks=[1]", "budgets.large.blocks=[2]", words=("no tier of `budgets`", "[1, 2]", "give one")
    )
