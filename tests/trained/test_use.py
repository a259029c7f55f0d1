"""Runs on images are measured, and the Python lines that a run prints load its model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel

from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import Examples
from fftmoe.errors import InputError
from fftmoe.evaluate import accuracy, predict_logits
from fftmoe.setup.load import load_examples, load_split
from finished import Finished, check_advice
from five_clients import FOURIER
from pictures import COLOURS, vision_values, write_pictures
from run_fixtures import RunValues
from shared_fixtures import Cli, assert_refused

RunSections = Callable[..., Finished]


@pytest.fixture(scope="module")
def run_sections(run_values: RunValues, recipe_values: dict[str, Any]) -> RunSections:
    """`run_sections(head=…)` runs the tiny recipe with other sections into a new folder."""
    return lambda **sections: run_values({**recipe_values, **sections})


@pytest.fixture(scope="module")
def vision(run_sections: RunSections, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of a tiny ViT on pictures that are a little red, green or blue."""
    return run_sections(
        **vision_values(tmp_path_factory.mktemp("vision")),
        head=FOURIER,
    )


def evaluated(cli: Cli, folder: Path, *flags: object) -> dict[str, Any]:
    outcome = cli("evaluate", folder, *flags)
    assert (outcome.status, outcome.err) == (0, "")
    return json.loads(outcome.out)


# Images


def test_evaluate_gives_the_accuracy_of_a_run_on_images(cli: Cli, vision: Finished):
    measures = evaluated(cli, vision.folder)
    assert measures["accuracy"] == vision.summary["accuracy"]
    assert measures["num_examples"] == 23
    assert set(measures["accuracy_by_label"]) == set(COLOURS)
    small = evaluated(cli, vision.folder, "--top-k", 1)
    assert small["accuracy"] == vision.summary["accuracy_by_tier"]["small"]
    assert evaluated(cli, vision.folder, "--split", "train")["num_examples"] == 61


def test_labels_of_other_images_are_matched_by_name(cli: Cli, vision: Finished, tmp_path: Path):
    own = evaluated(cli, vision.folder)
    # The same pictures, whose labels have other numbers in the file.
    assert evaluated(cli, vision.folder, "--data", write_pictures(tmp_path, ("blue", "red", "green"))) == own
    fewer = evaluated(cli, vision.folder, "--data", write_pictures(tmp_path, ("blue", "red"), ("red", "blue")))
    assert set(fewer["accuracy_by_label"]) == {"red", "blue"}


def test_a_missing_split_and_an_unknown_label_are_named(cli: Cli, vision: Finished, tmp_path: Path):
    assert_refused(cli("evaluate", vision.folder, "--split", "validation"), "no validation split")
    other = write_pictures(tmp_path, ("red", "violet"), ("red",))
    assert_refused(cli("evaluate", vision.folder, "--data", other), "not trained on: violet", "knows red, green, blue")


def test_a_run_on_images_whose_model_has_no_image_processor_is_refused(cli: Cli, vision: Finished, tmp_path: Path):
    shutil.copytree(vision.folder, tmp_path / "run")
    recipe = yaml.safe_load((vision.folder / "config.yaml").read_text())
    shutil.copytree(recipe["backbone"]["model"], tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    recipe["backbone"]["model"] = str(tmp_path / "vit")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(recipe))
    assert_refused(cli("evaluate", tmp_path / "run"), "cannot load the image processor of")


def test_a_split_is_what_the_run_was_measured_on(vision: Finished):
    recipe = parse_recipe(yaml.safe_load((vision.folder / "config.yaml").read_text()), "config.yaml")
    one, other = load_examples(recipe).test, load_split(recipe, "test", COLOURS)
    for name, tensor in one.batch([2, 0, 1]).items():
        assert tensor.equal(other.batch([2, 0, 1])[name])
    swapped = load_split(recipe, "test", ("blue", "green", "red"))
    assert swapped.labels.equal(2 - one.labels)


def with_validation(ran: Finished, **changes: int) -> Recipe:
    values = yaml.safe_load((ran.folder / "config.yaml").read_text())
    values["data"] |= changes
    return parse_recipe(values, "values")


def rows(examples: Examples) -> set[bytes]:
    return {examples.batch([i])["pixel_values"].numpy().tobytes() for i in range(len(examples))}


def test_validation_rows_replace_the_test_rows_and_leave_the_training_rows(vision: Finished):
    whole, held = (load_examples(with_validation(vision, **more)) for more in ({}, {"validation_examples": 5}))
    assert len(held.test) == 5
    assert len(held.train) == len(whole.train) - 5
    assert rows(held.train) | rows(held.test) == rows(whole.train)
    assert not rows(held.train) & rows(held.test)
    smaller = load_examples(with_validation(vision, validation_examples=5, train_examples=3, test_examples=2))
    assert rows(smaller.test) < rows(held.test)
    assert rows(smaller.train) < rows(held.train)


def test_a_validation_split_of_all_training_rows_is_refused(vision: Finished):
    size = len(load_examples(with_validation(vision)).train)
    with pytest.raises(
        InputError, match=rf"data.validation_examples={size} leaves nothing of the {size} training rows"
    ):
        load_examples(with_validation(vision, validation_examples=size))


# The Python that is printed


def printed_model(ran: Finished) -> Any:
    """The `model` that the printed lines create."""
    lines = ran.outcome.out[ran.outcome.out.index("load it in Python:") :].split("\n\n")[0].splitlines()[1:]
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines[:-1]), names)
    assert isinstance(names["model"], PeftModel)
    return names["model"].eval()


def assert_it_is_the_runs(ran: Finished, cli: Cli):
    recipe = parse_recipe(yaml.safe_load((ran.folder / "config.yaml").read_text()), "config.yaml")
    data = load_examples(recipe)
    model = printed_model(ran)
    assert accuracy(model, data.test) == ran.summary["accuracy"]
    predicted = predict_logits(model, data.test).argmax(1)
    right, labels = predicted == data.test.labels, data.test.labels
    by_class = [float(right[labels == c].double().mean()) for c in range(len(data.label_names))]
    by_label = dict(zip(data.label_names, map(float, by_class), strict=True))
    assert by_label == evaluated(cli, ran.folder)["accuracy_by_label"]


def test_the_printed_python_loads_a_text_run_with_random_features(cli: Cli, run_sections: RunSections):
    ran = run_sections(head=FOURIER)
    assert ", num_labels=3, fourier_features=31)\n" in ran.outcome.out
    assert "task=" not in ran.outcome.out
    check_advice(ran.outcome.out, ran.folder)
    assert f"fftmoe.predict({str(ran.folder)!r}, [...])" in ran.outcome.out
    assert_it_is_the_runs(ran, cli)
    (row,) = cli("predict", ran.folder, "red ash red").out.splitlines()
    assert json.loads(row)["label"] in ("blue", "green", "red")


def test_the_printed_python_loads_a_run_on_images(cli: Cli, vision: Finished):
    assert ", num_labels=3, task='image-classification', fourier_features=31)\n" in vision.outcome.out
    check_advice(vision.outcome.out, vision.folder)
    assert f"fftmoe.predict({str(vision.folder)!r}, [...])" in vision.outcome.out
    assert_it_is_the_runs(vision, cli)


def test_the_printed_python_names_only_values_that_are_not_defaults(
    cli: Cli, run_sections: RunSections, recipe_values: dict[str, Any]
):
    assert ", num_labels=3)\n" in run_sections().outcome.out
    ran = run_sections(
        backbone={**recipe_values["backbone"], "pooling": "native"}, head={"kind": "averaged", "learning_rate": 0.5}
    )
    assert ", num_labels=3, pooling='native')\n" in ran.outcome.out
    assert_it_is_the_runs(ran, cli)
