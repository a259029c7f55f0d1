"""`fftmoe evaluate --harness`: lm-evaluation-harness measures the model of a run.

The quick tests use a package that stands for it, with the names and the arguments of version 0.4.13 and none of its
work. The slow ones use the package itself, where it is installed, and compare the two.
"""

import importlib
import importlib.util
import inspect
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from fftmoe.backbones import load_tokenizer, logits
from fftmoe.setup.finished import load_run
from finished import Finished
from language import CHAT, WORDS, language_recipe, save_language_model, save_prompts
from run_fixtures import RunLanguage
from shared_fixtures import Cli, Outcome, assert_refused

INSTALLED = importlib.util.find_spec("lm_eval") is not None
ROWS = [{"question": f"say {word} once", "choices": list(WORDS[:5]), "answer": n} for n, word in enumerate(WORDS[:5])]


class HFLM:
    """Wraps a model, as `lm_eval.models.huggingface.HFLM` does."""

    def __init__(
        self,
        pretrained: Any,
        backend: str = "default",
        tokenizer: Any = None,
        truncation: bool = False,
        mixed_precision_dtype: Any = None,
        batch_size: int = 1,
    ) -> None:
        assert (backend, truncation, batch_size) == ("causal", True, 8)
        self.model, self.tokenizer, self.dtype = pretrained, tokenizer, mixed_precision_dtype


def simple_evaluate(
    model: Any,
    tasks: Any = None,
    limit: Any = None,
    log_samples: bool = True,
    apply_chat_template: Any = False,
    numpy_random_seed: Any = 1234,
) -> dict[str, Any]:
    """Noisy, as the package is: it seeds the process, draws bars, and prints."""
    random.seed(0)
    torch.manual_seed(1234)
    sys.stderr.write("\rRunning:  50%|")
    print("Determined largest batch size")
    if any(task == "broken" for task in tasks):
        raise KeyError("test_split")
    ids = model.tokenizer(["say ash"], return_tensors="pt")["input_ids"]
    scores = model.model(ids).logits[0, -1].float()
    said = float(scores.log_softmax(-1).max())
    habits = model.model.get_base_model().generation_config
    results = {
        task if isinstance(task, str) else task["task"]: {
            "alias": "a name",
            "acc,none": said,
            "acc_stderr,none": "N/A",
            "chat,none": float(apply_chat_template),
            "penalty,none": float(habits.repetition_penalty or 1.0),
        }
        for task in tasks
    }
    return {"results": results, "n-samples": {name: {"original": 5, "effective": limit or 5} for name in results}}


class TaskManager:
    all_tasks = ("arc_easy", "hellaswag", "broken")


def load_yaml(path: str, resolve_func: bool = True) -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text())


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that stands for the harness."""
    parts = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "lm_eval.tasks._yaml_loader": {"load_yaml": load_yaml},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        vars(module).update(values, __path__=[], __spec__=importlib.util.spec_from_loader(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.13")


@pytest.fixture(scope="module")
def folders(cli: Cli, run_language: RunLanguage, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("harness")
    model = save_language_model(folder / "model", chat_template=CHAT)
    habits = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**habits, "repetition_penalty": 5.0}))
    values = language_recipe(model, save_prompts(folder / "data"))
    (folder / "chats.yaml").write_text(json.dumps(values))
    assert cli("run", folder / "chats.yaml", "--output", folder / "chats").status == 0
    return {"plain": run_language().folder, "chats": folder / "chats"}


def task_file(folder: Path, **changes: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
        **changes,
    }
    (folder / "words.yaml").write_text(yaml.safe_dump(task))
    return folder / "words.yaml"


def found(outcome: Outcome) -> Any:
    assert (outcome.status, outcome.err) == (0, "")
    return json.loads(outcome.out)


@pytest.mark.parametrize("name", ["plain", "chats"])
def test_tasks_and_task_files_are_measured(
    cli: Cli, harness: None, folders: dict[str, Path], tmp_path: Path, name: str
):
    trained = load_run(folders[name])
    before = (random.getstate(), torch.random.get_rng_state())
    measured = found(
        cli("evaluate", folders[name], "--harness", f"arc_easy, {task_file(tmp_path)}", "--harness-limit", 3)
    )
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert measured["harness"] == "0.4.13"
    assert measured["chat_template"] is (name == "chats")
    assert [*measured["tasks"]] == ["arc_easy", "words"]
    tokenizer: Any = load_tokenizer(trained.run.backbone.model)
    with torch.inference_mode():
        scores = logits(trained.model, {"input_ids": tokenizer(["say ash"], return_tensors="pt")["input_ids"]})[0, -1]
    expected = {"chat,none": float(name == "chats"), "penalty,none": 1.0, "examples": 3}
    for metrics in measured["tasks"].values():
        assert metrics.pop("acc,none") == pytest.approx(float(scores.log_softmax(-1).max()), rel=1e-5)
        assert metrics == expected


def test_each_top_k_is_measured(cli: Cli, harness: None, folders: dict[str, Path]):
    measured = found(cli("evaluate", folders["plain"], "--harness", "arc_easy", "--top-k", "1,2"))
    assert [own["top_k"] for own in measured] == [1, 2]
    assert measured[0]["tasks"] != measured[1]["tasks"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--harness", "arc_esy"), ("no task 'arc_esy'", "did you mean 'arc_easy'")),
        (("--harness", "zzzzzzzz"), ("no task 'zzzzzzzz'", "lm-eval ls tasks")),
        (("--harness", "absent.yaml"), ("no task file 'absent.yaml'",)),
        (("--harness", "broken"), ("cannot measure", "broken", "test_split", "correct the task")),
        (("--harness", ","), ("no task is named",)),
        (("--harness", "arc_easy", "--data", "other.csv"), ("--data and --harness do not fit",)),
        (("--harness-limit", 3), ("add --harness",)),
    ],
)
def test_what_cannot_be_measured_is_refused(
    cli: Cli, harness: None, folders: dict[str, Path], options: tuple[object, ...], words: tuple[str, ...]
):
    assert_refused(cli("evaluate", folders["plain"], *options), *words)


def test_a_run_that_writes_no_text_is_refused(cli: Cli, harness: None, tiny_run: Finished):
    assert_refused(cli("evaluate", tiny_run.folder, "--harness", "arc_easy"), "writes no text")


def test_without_the_package_it_is_named(cli: Cli, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert_refused(cli("evaluate", folders["plain"], "--harness", "arc_easy"), "pip install 'fftmoe[harness]'")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed (extra: harness)")
def test_the_real_package_has_what_stands_for_it():
    real = importlib.import_module("lm_eval")
    pairs = [
        (real.simple_evaluate, simple_evaluate),
        (importlib.import_module("lm_eval.models.huggingface").HFLM, HFLM),
        (importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml, load_yaml),
    ]
    for one, other in pairs:
        assert inspect.signature(other).parameters.keys() <= inspect.signature(one).parameters.keys()
    assert {"arc_easy", "hellaswag"} <= {*importlib.import_module("lm_eval.tasks").TaskManager().all_tasks}


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed (extra: harness)")
def test_the_real_package_measures_a_local_task_as_its_probabilities_say(
    cli: Cli, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every choice is one token; the harness compares them after the same tokens of the prompt."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    measured = found(cli("evaluate", folders["plain"], "--harness", task_file(tmp_path)))
    trained = load_run(folders["plain"])
    tokenizer: Any = load_tokenizer(trained.run.backbone.model)
    choices = tokenizer.convert_tokens_to_ids(ROWS[0]["choices"])
    right = 0
    for row in ROWS:
        ids = tokenizer([row["question"]], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            scores = logits(trained.model, {"input_ids": ids})[0, -1]
        right += int(scores[choices].argmax()) == row["answer"]
    assert measured["tasks"]["words"]["acc,none"] == right / len(ROWS)
    assert measured["tasks"]["words"]["examples"] == len(ROWS)
    broken = cli("evaluate", folders["plain"], "--harness", task_file(tmp_path, doc_to_target="{{ absent.part }}"))
    assert_refused(broken, "lm-evaluation-harness cannot measure")
