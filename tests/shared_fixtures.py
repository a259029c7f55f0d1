"""Fixtures of all tests: one thread, a separate cache, tiny data, and a tiny backbone without and with adapters."""

import csv
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, cast

import hypothesis
import pytest
import torch
import transformers
import yaml

from fftmoe.rng import numpy_generator
from models import tiny_bert, tiny_tokenizer

# Two threads on busy cores make operations as tiny as these many times slower; workers use one thread as well.
torch.set_num_threads(1)

# No deadlines: the machine may be busy. Continuous integration tries the same examples each time, so that a red
# build is a change's doing; elsewhere new ones are drawn.
hypothesis.settings.register_profile("fftmoe", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("fftmoe")

pytest_plugins = ("run_fixtures",)

HERE = str(Path(__file__).parent)
WORDS = ("ash", "bay", "cod", "dew", "elm", "fig", "gum", "hay", "ivy")
COLOURS = ("blue", "green", "red")  # the three labels


def pytest_configure(config: pytest.Config) -> None:
    """typer 0.20 imports names that click 8.5 deprecates; a caller can do nothing about it."""
    config.addinivalue_line("filterwarnings", "ignore:'click.* is deprecated:DeprecationWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all tests of a file in one process, so that their shared fixtures are made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never write the user's token cache, and wait for no disk: what they write need not outlast a failure.

    Tests of what is forced to the disk put their own function in the place of `os.fsync`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setenv("FFTMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # of the subprocesses
        # A file of tests that is run as a script finds the modules next to this one, as the tests themselves do.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH")))))
        yield


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of three blocks with a word-level tokenizer, as a local model folder."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    cast(transformers.PreTrainedModel, tiny_bert().get_submodule("bert")).save_pretrained(folder)
    tiny_tokenizer((*WORDS, *COLOURS)).save_pretrained(folder)
    return folder


@pytest.fixture
def moe_model(backbone_folder: Path) -> Any:
    """The tiny BERT with 5 experts of 3 units in each of its last two blocks."""
    from federation import tiny_moe

    return tiny_moe(backbone_folder, num_experts=5, expert_dim=3, top_k=1, blocks="last-2")


@pytest.fixture
def fresh_lora_model(backbone_folder: Path) -> Callable[[], Any]:
    """Makes the tiny BERT with LoRA on two modules of its last two blocks; equal calls share no tensor."""
    from lora_rounds import fresh_model

    return lambda: fresh_model(backbone_folder)


@pytest.fixture
def lora_model(fresh_lora_model: Callable[[], Any]) -> Any:
    return fresh_lora_model()


@pytest.fixture
def in_a_flower_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the identity of a run: Flower makes messages only in a process that has one."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that name a colour among other words, labelled by it: 113 for training, 41 for testing."""
    folder = tmp_path_factory.mktemp("tiny-data")
    for split, size in (("train", 113), ("test", 41)):
        random = numpy_generator(7, split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label", "author"))
            for row in range(size):
                label = COLOURS[row % 3]
                words = [*random.choice(WORDS, int(random.integers(1, 7))).tolist(), label, label]
                writer.writerow((" ".join(random.permutation(words)), label, f"author-{row % 4}"))
    return folder


@pytest.fixture(scope="session")
def recipe_values(backbone_folder: Path, data_folder: Path) -> dict[str, Any]:
    """Seven clients in two tiers, two rounds of five, in this process."""
    return {
        "name": "tiny",
        "seed": 3,
        "backbone": {"model": str(backbone_folder)},
        "data": {"source": str(data_folder), "text": "text", "label": "label", "max_length": 13, "validation": "off"},
        "partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": 7},
        "adapter": {
            "num_experts": 5,
            "expert_dim": 4,
            "shared_rank": 0,
            "shared_targets": "query-value",
            "scale": 1.0,
            "blocks": "last-2",
        },
        "lora": {"targets": "query-value", "match": "parameters"},
        "head": {"kind": "one-vs-all", "learning_rate": 1.0},
        "budgets": [
            {"name": "small", "fraction": 0.6, "top_k": 1, "experts": 2},
            {"name": "large", "fraction": 0.4, "top_k": 2, "experts": 5},
        ],
        "federation": {
            "rounds": 2,
            "clients_per_round": 5,
            "local_steps": 3,
            "batch_size": 5,
            "learning_rate": 0.01,
            "schedule": "constant",
            "aggregation": "per-expert",
            "server_optimizer": "sgd",
        },
        "engine": {"workers": 1},
        "evaluation": {"baselines": "off", "local_only": True},
    }


@pytest.fixture(scope="session")
def recipe_file(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe as a user would write it."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_values, sort_keys=False))
    assert os.environ["FFTMOE_CACHE"]
    return path


class Outcome(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`cli("run", "a.yaml", stdin="…")` runs the command line in this process."""

    def run(*arguments: object, stdin: str = "") -> Outcome:
        from fftmoe.cli.app import main

        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            patch.setenv("COLUMNS", "500")  # so that no line is folded
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as stop:
                status = cast(int, stop.code)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Within `full_disk(n)` the kernel refuses, with a real error, to let any file grow past n bytes."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        # Python ignores the signal that would otherwise end the process.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


def assert_refused(outcome: Outcome, *words: str) -> None:
    """Check that input was refused: exit status 2, no standard output, and one line with these words."""
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("fftmoe: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err
