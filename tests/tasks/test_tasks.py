"""Tokens, several labels and numbers: metrics worked by hand, and whole federations on the tiny encoder."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from fftmoe import tasks
from fftmoe.backbones import load_tokenizer
from fftmoe.backbones.load import AUTO_MODELS
from fftmoe.config import parse_recipe
from fftmoe.config.backbone import LANGUAGE_TASKS, BackboneSection
from fftmoe.config.rules import OWN_LOSS
from fftmoe.data import SplitRequest, roles
from fftmoe.errors import InputError
from fftmoe.report.metric import Metric, own_mean
from fftmoe.rng import numpy_generator
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import run
from fftmoe.setup.splits import LOADERS, load_splits
from fftmoe.tasks import EachLabel, MultiLabel, PerToken, Regression, Squares, Task, TokenClassification
from fftmoe.trained.predict import ANSWERS

WORDS = ("ash", "bay", "cod", "dew", "elm")
COLOURS = ("blue", "green", "red")
TASKS = {
    "token-classification": ("accuracy", ["O", "blue", "green", "red"]),
    "multi-label-classification": ("f1", ["blue", "green", "red"]),
    "regression": ("mean_absolute_error", ["reds", "share"]),
}


def test_every_table_has_every_task_that_a_recipe_can_name():
    named = set(get_args(BackboneSection.model_fields["task"].annotation))
    assert named == set(tasks.TASKS) == set(AUTO_MODELS) == set(LOADERS)
    assert {*LANGUAGE_TASKS, *OWN_LOSS} == set(tasks.LOSSES)
    assert set(roles.LANGUAGE_TASKS) == {*LANGUAGE_TASKS} == {n for n in named if tasks.make_task(n).next_token}
    assert {name for name in named if not tasks.make_task(name).by_token} == set(ANSWERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of words and colours: each word's tag, which colours occur, how many red ones and what share they are."""
    folder = tmp_path_factory.mktemp("targets")
    for split, size in (("train", 113), ("test", 41)):
        random = numpy_generator(7, split)
        with (folder / f"{split}.jsonl").open("w") as file:
            for row in range(size):
                words = random.choice((*WORDS, *COLOURS), int(random.integers(2, 7))).tolist()
                reds = words.count("red")
                facts = {
                    "text": " ".join(words),
                    "tokens": words,
                    "tags": [word if word in COLOURS else "O" for word in words],
                    "colours": sorted(set(words) & set(COLOURS)),
                    "reds": reds,
                    "share": reds / len(words),
                    "author": f"author-{row % 3}",
                }
                file.write(json.dumps(facts) + "\n")
    return folder


def recipe_of(recipe_values: dict[str, Any], data: Path, task: str, **changes: Any) -> dict[str, Any]:
    values = copy.deepcopy(recipe_values)
    values["backbone"]["task"] = task
    values["data"] = {"source": str(data), "max_length": 13}
    values["data"] |= {"regression": {"targets": ["reds", "share"]}}.get(task, {})
    values["data"] |= {"multi-label-classification": {"label": "colours"}}.get(task, {})
    values |= {"head": {"kind": "averaged", "learning_rate": 0.1}, "trackers": [], "evaluation": {"baselines": "off"}}
    values["partition"] = {"kind": "iid", "num_clients": 7}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value} if name else value
    return values


# Metrics


def metrics(task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    statistics = task.statistics(outputs, {"labels": labels})
    assert statistics.dtype == torch.float64
    assert len(statistics) == len(labels)
    found = task.metrics(statistics.numpy().sum(0))
    assert next(iter(found)) == task.metric
    # A mean of statistics gives the same metrics as their sum.
    means = task.metrics(statistics.numpy().mean(0))
    np.testing.assert_allclose([*means.values()], [*found.values()])
    return {name: float(value) for name, value in found.items()}


def test_tokens_are_counted_by_class_worked_by_hand():
    """The labels 0 1 0 2 are predicted as 0 1 1 0, so 2 of 4 are right; a fifth token has no label.

    F1 of class 0 is 2 * 1 / (2 + 2), of class 1 2 * 1 / (2 + 1), of class 2 0 / (0 + 1); class 3 does not occur.
    """
    said, labels = torch.tensor([[0, 1, 1], [0, 3, 3]]), torch.tensor([[0, 1, 0], [2, -100, -100]])
    outputs = torch.nn.functional.one_hot(said, 4).float()
    found = metrics(TokenClassification(), outputs, labels)
    assert found == pytest.approx({"accuracy": 0.5, "macro_f1": (1 / 2 + 2 / 3 + 0) / 3})
    one_token = torch.nn.functional.cross_entropy(outputs[0, 0], torch.tensor(0))
    wrong = torch.nn.functional.cross_entropy(outputs[0, 2], torch.tensor(0))
    assert float(PerToken().loss(outputs, labels)) == pytest.approx(float(2 * one_token + 2 * wrong) / 4)


def test_labels_are_counted_over_all_texts_worked_by_hand():
    """{0}, {2} and {1} are predicted as {0, 1}, {2} and {}: 2 of 3 and 3 agree, and one set is exact."""
    outputs = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, 0.5], [-3.0, -0.1, -0.2]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = metrics(MultiLabel(), outputs, targets)
    assert found == pytest.approx({"f1": 2 * 2 / 6, "macro_f1": (1 + 0 + 1) / 3, "exact_match": 1 / 3})
    by_hand = np.log1p(np.exp(-outputs.numpy() * (2 * targets.numpy() - 1))).sum() / 3
    assert float(EachLabel().loss(outputs, targets)) == pytest.approx(float(by_hand))


def test_errors_of_numbers_worked_by_hand():
    """The first target, 1 2 3 4, is predicted as 1 3 3 2, and the second, 0 0 0 8, is predicted exactly."""
    outputs = torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 0.0], [2.0, 8.0]])
    targets = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 8.0]])
    found = metrics(Regression(), outputs, targets)
    # Squared errors sum to 5 and squares about the mean to 5, so that the first target is explained by nothing.
    expected = {"mean_absolute_error": (3 / 4 + 0) / 2, "mean_squared_error": (5 / 4 + 0) / 2, "r2": (0 + 1) / 2}
    assert found == pytest.approx(expected)
    assert float(Squares().loss(outputs, targets)) == pytest.approx(5 / 8)


# Data


def test_a_words_tag_is_on_its_first_token_and_is_cut_with_it(recipe_values: dict[str, Any], tmp_path: Path):
    rows = [{"tokens": ["ash", "red", "bay"], "tags": ["O", "C", "O"]}, {"tokens": ["red"], "tags": ["C"]}]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(recipe_of(recipe_values, tmp_path, "token-classification", data__max_length=4), "test")
    found = load_splits(recipe, str(tmp_path), SplitRequest())
    assert found.label_names == ("C", "O")
    assert found.strata == ("all",)
    batch = found.examples["train"].batch([1, 0])
    vocabulary = load_tokenizer(recipe.backbone.model).get_vocab()
    ash, red, cls, sep, pad = (vocabulary[word] for word in ("ash", "red", "[CLS]", "[SEP]", "[PAD]"))
    assert batch["input_ids"].tolist() == [[cls, red, sep, pad], [cls, ash, red, sep]]
    assert batch["labels"].tolist() == [[-100, 0, -100, -100], [-100, 1, 0, -100]]
    chosen = found.examples["train"].select([1])
    assert chosen.batch([0])["labels"].tolist() == [[-100, 0, -100]]


def test_targets_are_numbers_and_labels_are_sets(recipe_values: dict[str, Any], data: Path):
    first = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    numbers = compose(parse_recipe(recipe_of(recipe_values, data, "regression"), "test"))
    assert numbers.train.batch([0])["labels"].tolist() == [pytest.approx([first["reds"], first["share"]])]
    by_author = {"kind": "natural", "by": "author"}
    values = recipe_of(recipe_values, data, "multi-label-classification", partition=by_author)
    values["federation"]["clients_per_round"] = 3
    sets = compose(parse_recipe(values, "test"))
    assert sets.train.batch([0])["labels"].tolist() == [[float(colour in first["colours"]) for colour in COLOURS]]
    assert sets.strata == ("author-0", "author-1", "author-2")
    assert sets.label_names == COLOURS


@pytest.mark.parametrize(
    ("task", "row", "changes", "message"),
    [
        ("regression", {"text": "ash", "reds": "two", "share": 0.5}, {}, r"'reds' holds 'two' in row 2.*data.targets"),
        ("regression", {"text": "ash", "reds": None, "share": 0.5}, {}, "holds None in row 2"),
        ("multi-label-classification", {"text": "ash", "colours": "red"}, {}, r"holds 'red' in row 2.*data.label"),
        ("token-classification", {"tokens": ["ash"], "tags": ["O", "O"]}, {}, "row 2 has 1 token and 2 tags"),
        ("token-classification", {"tokens": [], "tags": []}, {}, "row 2 has 0 tokens"),
        (
            "token-classification",
            {"tokens": ["ash"], "tags": ["N"]},
            {"split": "test"},
            "'N' occurs here but never in tra",
        ),
        (
            "token-classification",
            {"tokens": ["ash"], "tags": ["O"]},
            {"data__tags": "ner"},
            r"no column 'ner'.*data.tags",
        ),
        (
            "regression",
            {"text": "ash", "reds": 1, "share": 0.5},
            {"data__targets": None},
            "a regression needs data.targets",
        ),
        (
            "regression",
            {"text": "ash", "reds": 1, "share": 0.5},
            {"head": {"kind": "one-vs-all", "learning_rate": 1.0}},
            "head.kind=one-vs-all is for single-label classification",
        ),
        (
            "multi-label-classification",
            {"text": "ash", "colours": ["red"]},
            {"partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": 7}},
            "divides the examples by their labels",
        ),
        ("regression", {"text": "ash", "reds": 1, "share": 0.5}, {"engine": {"clients_per_batch": 2}}, "one client at"),
    ],
)
def test_what_cannot_be_used_is_refused(
    recipe_values: dict[str, Any],
    data: Path,
    tmp_path: Path,
    task: str,
    row: dict[str, Any],
    changes: Any,
    message: str,
):
    changes = dict(changes)
    spoiled = changes.pop("split", "train")
    for split in ("train", "test"):
        lines = (data / f"{split}.jsonl").read_text().splitlines()
        whole = {**json.loads(lines[1]), **row}
        lines[1] = json.dumps(whole if split == spoiled else json.loads(lines[1]))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        run(parse_recipe(recipe_of(recipe_values, tmp_path, task, **changes), "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
@pytest.mark.parametrize("num_rows", [1, 2, 41])
def test_a_constant_target_has_a_coefficient_of_determination(value: float, num_rows: int):
    """Its variance is 0, or what rounding leaves of it; scikit-learn gives 1 if it is met and 0 if not."""
    targets = torch.full((num_rows, 1), value, dtype=torch.float64)
    assert metrics(Regression(), targets.clone(), targets)["r2"] == 1.0
    assert metrics(Regression(), targets + 0.5, targets)["r2"] == 0.0
    varied = torch.cat([targets, torch.arange(num_rows).double()[:, None]], 1)
    if num_rows > 1:
        assert metrics(Regression(), varied.clone(), varied)["r2"] == 1.0


# Whole runs


def test_a_run_whose_test_targets_are_constant_ends_with_a_summary(
    recipe_values: dict[str, Any], data: Path, tmp_path: Path
):
    shutil.copytree(data, tmp_path / "data")
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    with (tmp_path / "data" / "test.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "reds": 3, "share": 0.1}) + "\n" for row in rows)
    values = recipe_of(recipe_values, tmp_path / "data", "regression")
    values["federation"] |= {"rounds": 1, "local_steps": 1}
    assert run(parse_recipe(values, "test"), tmp_path / "run").summary["rounds_completed"] == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds_completed"] == 1
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["r2"] == 0.0


def check_labels(summary: dict[str, Any], names: list[str] | None) -> None:
    """The counts of labels give the metric of the summary, and are absent where there are no labels."""
    if names is None:
        assert "labels" not in summary
        return
    counts = summary["labels"]
    actual, predicted, hits = (sum(counts[key]) for key in ("actual", "predicted", "hits"))
    assert counts["name"] == names
    if summary["metric"] == "f1":
        assert summary["f1"] == pytest.approx(2 * hits / (predicted + actual), rel=1e-12)
        assert "confusion" not in counts  # a text may have several labels
        return
    assert actual == predicted
    assert summary["accuracy"] == pytest.approx(hits / actual, rel=1e-12)
    matrix = np.array(counts["confusion"])
    assert matrix.sum(0).tolist() == counts["predicted"]
    assert matrix.sum(1).tolist() == counts["actual"]
    assert matrix.diagonal().tolist() == counts["hits"]


@pytest.mark.parametrize("pooling", ["mean", "native"])
@pytest.mark.parametrize("task", TASKS)
def test_a_federation_learns(recipe_values: dict[str, Any], data: Path, tmp_path: Path, task: str, pooling: str):
    metric, names = TASKS[task]
    values = recipe_of(
        recipe_values, data, task, evaluation={"baselines": "off", "local_only": True, "local_only_clients": 3}
    )
    values["backbone"]["pooling"] = pooling
    values["federation"] |= {"rounds": 4, "local_steps": 6}
    recipe = parse_recipe(values, "test")
    summary = run(recipe, tmp_path / "run").summary
    assert summary["metric"] == metric
    better = 1 if metric != "mean_absolute_error" else -1
    # What is trained is the squared error, which may fall while the absolute one does not.
    judged = metric if task != "regression" else "mean_squared_error"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert better * (rows[-1][judged] - rows[0][judged]) > 0
    assert summary[f"{metric}_by_round"]["4"] == summary[metric]
    assert summary[f"{metric}_by_tier"]["large"] == summary[metric]
    spread = own_mean(summary, Metric(metric))
    assert spread is not None
    assert better * (spread["mean"] - spread["worst_decile"]) >= 0
    assert summary[f"local_only_{metric}"]["num_clients"] == 3
    assert summary["clients_failed"] == 0
    assert json.loads((tmp_path / "run" / "adapter" / "labels.json").read_text())["labels"] == names
    check_labels(summary, names if task != "regression" else None)
    found = evaluate_run(tmp_path / "run")
    assert found[metric] == pytest.approx(summary[metric], rel=1e-5)
    assert found["num_examples"] == 41


@pytest.mark.parametrize("method", ["fedit", "head-only", "local-only"])
@pytest.mark.parametrize("task", TASKS)
def test_other_methods_train_these_tasks(
    recipe_values: dict[str, Any], data: Path, tmp_path: Path, task: str, method: str
):
    recipe = parse_recipe(recipe_of(recipe_values, data, task, method=method), "test")
    assert forecast(recipe).tiers[0].trainable_parameters > 0
    assert run(recipe, tmp_path / "run").summary["clients_failed"] == 0
