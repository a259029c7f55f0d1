"""The use of a finished run: its adapter in Python, and the commands `evaluate` and `predict`."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

import fftmoe
from fftmoe.backbones import load_tokenizer
from fftmoe.data import tokenize_texts
from fftmoe.evaluate import accuracy
from finished import Finished
from reading import read_labelled_texts
from shared_fixtures import Cli


def test_the_printed_python_loads_the_adapter(tiny_run: Finished, data_folder: Path):
    printed = tiny_run.outcome.out[tiny_run.outcome.out.index("load it in Python:") :].splitlines()[1:8]
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in printed[:-1]), names)
    assert names["reader"].tokenize("red ash") == ["red", "ash"]
    assert printed[-1] == f"or ask it: fftmoe.predict({str(tiny_run.folder)!r}, [...])"
    assert isinstance(names["model"], PeftModel)
    assert measured(names["model"], names["backbone"], tiny_run, data_folder) == tiny_run.summary["accuracy"]


def test_a_peft_model_reproduces_the_accuracy(tiny_run: Finished, backbone_folder: Path, data_folder: Path):
    backbone = fftmoe.load_backbone(str(backbone_folder), num_labels=3)
    model = PeftModel.from_pretrained(backbone, str(tiny_run.folder / "adapter"))
    assert getattr(model.peft_config["default"], "top_k", None) == 2  # the largest tier's
    assert measured(model, backbone, tiny_run, data_folder) == tiny_run.summary["accuracy"]


def measured(model: Any, backbone: Any, finished: Finished, data_folder: Path) -> float:
    source = read_labelled_texts(str(data_folder))
    folder = backbone.config._name_or_path
    labels = json.loads((finished.folder / "adapter" / "labels.json").read_text())["labels"]
    assert tuple(labels) == source.label_names
    test = source.splits["test"]
    return accuracy(model.eval(), tokenize_texts(test.content, test.labels, load_tokenizer(folder), 13))


def test_evaluate_gives_the_accuracy_of_the_run(cli: Cli, tiny_run: Finished):
    outcome = cli("evaluate", tiny_run.folder)
    assert outcome.status == 0
    measures = json.loads(outcome.out)
    assert measures["accuracy"] == tiny_run.summary["accuracy"]
    assert measures["num_examples"] == 41
    assert set(measures["accuracy_by_label"]) == {"blue", "green", "red"}
    small = json.loads(cli("evaluate", tiny_run.folder, "--top-k", 1).out)
    assert small["accuracy"] == tiny_run.summary["accuracy_by_tier"]["small"]
    train = json.loads(cli("evaluate", tiny_run.folder, "--split", "train").out)
    assert train["num_examples"] == 113


def test_evaluate_numbers_the_labels_of_other_data_by_their_names(cli: Cli, tiny_run: Finished, tmp_path: Path):
    # Only two of the three labels, so that their numbers differ from the run's.
    rows = ["text,label", "ash red red,red", "bay green green,green", "red cod red,red"]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
    outcome = cli("evaluate", tiny_run.folder, "--data", tmp_path)
    assert set(json.loads(outcome.out)["accuracy_by_label"]) == {"green", "red"}
    lines = cli("predict", tiny_run.folder, *(row.partition(",")[0] for row in rows[1:])).out.splitlines()
    right = [json.loads(line)["label"] == row.partition(",")[2] for line, row in zip(lines, rows[1:], strict=True)]
    assert json.loads(outcome.out)["accuracy"] == pytest.approx(sum(right) / 3)


def test_predict_reads_arguments_a_file_or_standard_input(cli: Cli, tiny_run: Finished, tmp_path: Path):
    texts = ["red ash red", "blue bay", "cod dew green green"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    from_arguments = cli("predict", tiny_run.folder, *texts)
    assert from_arguments.status == 0
    rows = [json.loads(line) for line in from_arguments.out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(row["label"] in ("blue", "green", "red") and 1 / 3 <= row["score"] <= 1 for row in rows)
    assert cli("predict", tiny_run.folder, "--file", tmp_path / "texts.txt").out == from_arguments.out
    assert cli("predict", tiny_run.folder, stdin="\n".join(texts)).out == from_arguments.out
