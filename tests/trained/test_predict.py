"""A finished run answers texts, images and prompts from every kind of input, and is measured on other data."""

import csv
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from PIL import Image

import fftmoe
from fftmoe.backbones import Decoding, load_tokenizer, logits
from fftmoe.errors import RunError
from fftmoe.setup.finished import load_client, load_run, recipe_of
from fftmoe.setup.load import load_split
from fftmoe.trained.complete import Writing
from fftmoe.trained.inputs import Inputs
from fftmoe.trained.predict import predict
from fftmoe.trained.run import TrainedModel
from five_clients import FOURIER
from pictures import COLOURS, vision_values
from run_fixtures import RunLanguage, RunValues
from shared_fixtures import Cli, assert_refused

TEXTS = ("red ash red", "cod blue bay blue", "green dew green elm fig")
RunSections = Callable[..., Path]


@pytest.fixture(scope="module")
def run_sections(run_values: RunValues, recipe_values: dict[str, Any]) -> RunSections:
    """`run_sections(head=…)` runs the tiny recipe with other sections, and returns the run folder."""
    return lambda **sections: run_values({**recipe_values, **sections}).folder


@pytest.fixture(scope="module")
def texts(run_sections: RunSections, recipe_values: dict[str, Any]) -> Path:
    return run_sections(adapter={**recipe_values["adapter"], "router": "shared+personal"})


@pytest.fixture(scope="module")
def vision(run_sections: RunSections, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_sections(**vision_values(tmp_path_factory.mktemp("vision")))


@pytest.fixture(scope="module")
def language(run_language: RunLanguage) -> Path:
    return run_language().folder


@pytest.fixture(scope="module")
def tagged(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sections of a run that tags words."""
    folder = tmp_path_factory.mktemp("tagged")
    for split, size in {"train": 61, "test": 23}.items():
        words = [["red", "ash", "cod"][: 1 + row % 3] for row in range(size)]
        tags = [["colour" if word == "red" else "other" for word in own] for own in words]
        datasets.Dataset.from_dict({"tokens": words, "tags": tags}).to_parquet(folder / f"{split}.parquet")
    return {
        "backbone": {"model": str(backbone_folder), "task": "token-classification"},
        "data": {"source": str(folder), "max_length": 7, "validation": "off"},
        "partition": {"kind": "iid", "num_clients": 7},
        "head": {"kind": "averaged", "learning_rate": 1.0},
    }


def rows(cli: Cli, *arguments: object, stdin: str = "") -> list[dict[str, Any]]:
    outcome = cli("predict", *arguments, stdin=stdin)
    said = [line for line in outcome.err.splitlines() if not line.startswith("prompts: ")]
    assert (outcome.status, said) == (0, [])
    return [json.loads(line) for line in outcome.out.splitlines()]


# Texts


def test_texts_get_the_same_answers_from_every_kind_of_input(cli: Cli, texts: Path, tmp_path: Path):
    asked = rows(cli, texts, *TEXTS)
    assert [row["text"] for row in asked] == list(TEXTS)
    assert all(row.keys() == {"text", "label", "score"} and row["label"] in COLOURS for row in asked)
    assert rows(cli, texts, stdin="\n".join(TEXTS)) == asked
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "said"), *((text, text) for text in TEXTS)])
    (tmp_path / "table.jsonl").write_text("".join(json.dumps({"said": text}) + "\n" for text in TEXTS))
    datasets.Dataset.from_dict({"said": list(TEXTS)}).to_parquet(tmp_path / "table.parquet")
    assert rows(cli, texts, "--file", tmp_path / "lines.txt") == asked
    assert rows(cli, texts, "--file", tmp_path / "table.csv") == asked
    for suffix in ("csv", "jsonl", "parquet"):
        assert rows(cli, texts, "--file", tmp_path / f"table.{suffix}", "--column", "said") == asked
    more = rows(cli, texts, TEXTS[0], "--file", tmp_path / "lines.txt")
    assert [(row["text"], row["label"]) for row in more] == [(row["text"], row["label"]) for row in (asked[0], *asked)]
    # A batch of one more text is another product, in float32: some processors add in another order.
    assert [row["score"] for row in more] == pytest.approx([asked[0]["score"], *(r["score"] for r in asked)], rel=1e-5)


@pytest.mark.parametrize("solved", [False, True])
def test_scores_cover_all_labels_and_sum_to_one(cli: Cli, texts: Path, run_sections: RunSections, solved: bool):
    run = run_sections(head=FOURIER) if solved else texts
    for row in rows(cli, run, *TEXTS, "--scores"):
        assert row["scores"].keys() == set(COLOURS)
        assert sum(row["scores"].values()) == pytest.approx(1)
        assert row["score"] == max(row["scores"].values()) == row["scores"][row["label"]]


def test_answers_are_written_to_a_file_and_equal_in_any_batch_size(cli: Cli, texts: Path, tmp_path: Path):
    asked = rows(cli, texts, *TEXTS)
    assert rows(cli, texts, *TEXTS, "--output", tmp_path / "answers.jsonl", "--batch-size", 2) == []
    written = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["label"] for row in written] == [row["label"] for row in asked]
    # Padding changes the order of a few additions.
    assert [row["score"] for row in written] == pytest.approx([row["score"] for row in asked], rel=1e-5)
    assert fftmoe.predict(texts, TEXTS) == asked


def test_the_personal_model_of_a_client_answers(cli: Cli, texts: Path):
    own = load_client(texts, 2)
    probs = fftmoe.predict(texts, TEXTS, client=2, scores=True)
    assert own.kept
    assert probs == rows(cli, texts, *TEXTS, "--client", 2, "--scores")
    assert probs != rows(cli, texts, *TEXTS, "--scores")
    assert_refused(cli("predict", texts, "red", "--client", 7), "client 7", "clients 0 to 6")


def test_a_run_without_checkpoints_has_no_personal_models(cli: Cli, texts: Path, tmp_path: Path):
    shutil.copytree(texts, tmp_path / "run", ignore=lambda _, names: {"checkpoints", "metrics.jsonl"} & set(names))
    assert_refused(cli("predict", tmp_path / "run", "red", "--client", 2), "no checkpoint")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--file", "absent.txt"), ("absent.txt",)),
        (("--file", "absent.csv"), ("absent.csv",)),
        (("red", "--top-k", 9), ("top_k=9",)),
    ],
)
def test_an_input_that_cannot_be_read_is_named(
    cli: Cli, texts: Path, arguments: Sequence[object], words: Sequence[str]
):
    assert_refused(cli("predict", texts, *arguments), *words)


def test_a_column_that_is_missing_or_holds_no_texts_is_named(cli: Cli, texts: Path, tmp_path: Path):
    (tmp_path / "table.jsonl").write_text('{"said": 3}\n')
    assert_refused(cli("predict", texts, "--file", tmp_path / "table.jsonl"), "'text'", "said", "--column")
    named = cli("predict", texts, "--file", tmp_path / "table.jsonl", "--column", "said")
    assert_refused(named, "holds 3", "not a text")


def test_a_value_that_is_no_text_costs_no_answer_of_another(cli: Cli, texts: Path, tmp_path: Path):
    """In a column of texts; one in which no value is a text is refused."""
    values = [TEXTS[0], 3, None, True, [TEXTS[0]], {"a": 1}, 1.5, TEXTS[1]]
    (tmp_path / "table.jsonl").write_text("".join(f'{{"text": {json.dumps(value)}}}\n' for value in values))
    found = rows(cli, texts, TEXTS[2], "--file", tmp_path / "table.jsonl", "--scores")
    assert [row["label"] is None for row in found] == [False, False, *[True] * 6, False]
    assert found[3]["reason"] == "there is no text"
    assert "the column 'text' holds 3, which is not a text" in found[2]["reason"]
    assert all("not a text" in row["reason"] for row in (found[2], *found[4:8]))
    assert found[2].keys() == {"text", "label", "score", "scores", "reason"}
    asked = rows(cli, texts, TEXTS[2], TEXTS[0], TEXTS[1])
    assert [row["label"] for row in (found[0], found[1], found[8])] == [row["label"] for row in asked]


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("kind", ["texts", "language", "tags"])
def test_an_output_that_is_not_finite_costs_no_answer_of_another(
    kind: str, batch_size: int, texts: Path, language: Path, run_sections: RunSections, tagged: dict[str, Any]
):
    """One word of the vocabulary has no finite embedding."""
    folder = language if kind == "language" else texts if kind == "texts" else run_sections(**tagged)
    trained, (field, word) = load_run(folder), ("text", "elm") if kind != "language" else ("prompt", "cod")
    asked = ["ash bay", f"bay {word}", "bay ash"]
    ask = asking(trained, batch_size)
    alone = ask(Inputs([asked[0], asked[2]], reasons=[None, None]))
    tokenizer: Any = load_tokenizer(trained.run.backbone.model)
    vocabulary = next(module for module in trained.model.modules() if isinstance(module, torch.nn.Embedding))
    vocabulary.weight.data[tokenizer.convert_tokens_to_ids(word)] = math.nan
    found = ask(Inputs(asked, reasons=[None] * 3))
    assert [row[field] for row in found] == asked
    assert [answer_of(found[0]), answer_of(found[2])] == [answer_of(row) for row in alone]
    assert answer_of(found[1]) is None
    assert found[1]["reason"] == "the model's outputs are not finite numbers, so it has no answer"
    assert found[1].keys() == {*found[0], "reason"}
    with pytest.raises(RunError, match="not finite numbers for 1 of 1 example"):
        ask(Inputs(asked[1:2], reasons=[None]))


def asking(trained: TrainedModel, batch_size: int) -> Callable[[Inputs], list[dict[str, Any]]]:
    writing = Writing(Decoding(max_new_tokens=2), batch_size)
    return lambda inputs: list(predict(trained, inputs, batch_size, False, writing))


def answer_of(row: dict[str, Any]) -> Any:
    return row["completion"] if "completion" in row else row["tags"] if "tags" in row else row["label"]


# Images


def test_images_are_labelled_from_files_folders_and_tables(cli: Cli, vision: Path, tmp_path: Path):
    source = Path(yaml.safe_load((vision / "config.yaml").read_text())["data"]["source"]) / "test.parquet"
    table = rows(cli, vision, source, "--scores")
    assert [row["image"] for row in table] == [f"{source}:{row}" for row in range(1, 24)]
    trained = load_run(vision)
    examples = load_split(recipe_of(vision), "test", trained.run.label_names)
    pictures = datasets.Dataset.from_parquet(str(source))
    assert isinstance(pictures, datasets.Dataset)
    for row in range(3):
        pictures[row]["picture"].save(tmp_path / f"{row}.png")
    (tmp_path / "notes.txt").write_text("no image")
    folder = rows(cli, vision, tmp_path, "--scores")
    assert [row["image"] for row in folder] == [str(tmp_path / f"{row}.png") for row in range(3)]
    assert folder == rows(
        cli, vision, *(tmp_path / f"{row}.png" for row in range(2)), "--scores", "--file", tmp_path / "2.png"
    )
    for one, other in zip(folder, table, strict=False):
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-5)  # another batch size
    expected = fftmoe.predict(vision, [str(source)])
    assert len(examples) == len(expected)
    lines = ['{"picture": null}', *(json.dumps({"picture": f"{row}.png"}) for row in range(3)), "{}"]
    (tmp_path / "some.jsonl").write_text("\n".join([*lines, '{"picture": ""}']))
    places = rows(cli, vision, tmp_path / "some.jsonl")
    assert [row["label"] for row in places] == [None, *(row["label"] for row in folder), None, None]
    assert [row["image"] for row in places] == [f"{tmp_path / 'some.jsonl'}:{row}" for row in range(1, 7)]
    nothing = {"image": f"{tmp_path / 'some.jsonl'}:5", "label": None, "score": None, "reason": "there is no image"}
    assert places[4] == nothing
    (tmp_path / "some.jsonl").write_text(lines[0] + '\n{"picture": "absent.png"}\n')
    assert_refused(cli("predict", vision, tmp_path / "some.jsonl"), "some.jsonl:2", "cannot be read", "No such file")
    (tmp_path / "some.jsonl").write_text(lines[0])
    assert rows(cli, vision, tmp_path / "some.jsonl", "--scores")[0]["scores"] is None


def test_an_input_that_is_not_an_image_is_named(cli: Cli, vision: Path, tmp_path: Path):
    (tmp_path / "picture.png").write_text("no image")
    assert_refused(cli("predict", vision, tmp_path / "picture.png"), "picture.png", "unknown format")
    Image.new("RGB", (97, 89)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    damaged = cli("predict", vision, tmp_path)  # the folder's first file
    assert_refused(damaged, "cut.jpg: the image cannot be read", "replace it, or leave it out")
    assert "row" not in damaged.err.replace(str(tmp_path), "")
    (tmp_path / "cut.jpg").unlink()
    assert_refused(cli("predict", vision, "some text"), "some text")
    assert_refused(cli("predict", vision), "no image to label")
    (tmp_path / "empty").mkdir()
    assert_refused(cli("predict", vision, tmp_path / "empty"), "empty holds no image")
    (tmp_path / "empty" / "folder.png").mkdir()
    assert_refused(cli("predict", vision, tmp_path / "empty"), "empty holds no image")
    Image.new("RGB", (7, 5)).save(tmp_path / "good.png")
    assert len(rows(cli, vision, tmp_path / "good.png")) == 1


def test_a_damaged_image_costs_no_answer_of_another(cli: Cli, vision: Path, tmp_path: Path):
    for name in ("a", "c"):
        Image.new("RGB", (7, 5), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    alone = rows(cli, vision, tmp_path / "a.png", tmp_path / "c.png")
    found = rows(cli, vision, tmp_path)
    assert [found[0], found[2]] == alone
    assert found[1] == {
        "image": str(tmp_path / "b.png"),
        "label": None,
        "score": None,
        "reason": found[1]["reason"],
    }
    assert found[1]["reason"].startswith("the image cannot be read: ")
    cells = [{"picture": "c.png"}, {"picture": "../c.png"}, {"picture": [[1, 2], [3]]}, {"picture": "a.png"}]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, cells)))
    table = rows(cli, vision, tmp_path / "some.jsonl")
    assert [row["label"] is None for row in table] == [False, True, True, False]
    assert [table[0]["score"], table[3]["score"]] == [alone[1]["score"], alone[0]["score"]]


# Prompts


def greedily(trained: TrainedModel, prompt: str, most: int) -> str:
    """The greedy completion, computed by whole forward passes in a loop."""
    tokenizer: Any = load_tokenizer(trained.run.backbone.model)
    ids, start = tokenizer(prompt)["input_ids"], len(tokenizer(prompt)["input_ids"])
    while len(ids) < start + most:
        with torch.inference_mode():
            ids.append(int(logits(trained.model, {"input_ids": torch.tensor([ids])})[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_prompts_are_completed_greedily(cli: Cli, language: Path):
    prompts = ["say ash once", "say bay twice say say"]
    found = rows(cli, language, *prompts, "--max-new-tokens", 3)
    trained = load_run(language)
    assert found == [{"prompt": prompt, "completion": greedily(trained, prompt, 3)} for prompt in prompts]
    assert any(row["completion"] for row in found)
    assert found == rows(cli, language, "--max-new-tokens", 3, stdin="\n".join(prompts))
    table = Path(recipe_of(language).data.source) / "test.csv"  # its column is named in the recipe
    assert len(rows(cli, language, "--file", table, "--max-new-tokens", 1)) == 23


def test_a_request_that_a_language_model_cannot_serve_is_named(cli: Cli, language: Path):
    assert_refused(cli("predict", language, "say ash", "--scores"), "causal-lm", "no label")
    assert_refused(cli("predict", language, "say ash", "--max-new-tokens", 50), "beyond the 37", "--max-new-tokens")


def test_a_prompt_that_cannot_be_continued_costs_no_answer_of_another(cli: Cli, language: Path):
    """The tokenizer drops "#"; a prompt of 17 tokens has no room for 25 more."""
    long = " ".join(["say"] * 30)
    outcome = cli("predict", language, "say ash", "#", long, "say bay", "--max-new-tokens", 25)
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.status == 0
    assert [row["completion"] is None for row in found] == [False, True, True, False]
    assert [row["prompt"] for row in found] == ["say ash", "#", long, "say bay"]
    assert "drops all characters" in found[1]["reason"]
    assert "beyond the 37" in found[2]["reason"]
    assert [found[0], found[3]] == rows(cli, language, "say ash", "say bay", "--max-new-tokens", 25)


# Other tasks


def test_every_word_gets_a_tag_or_none(cli: Cli, run_sections: RunSections, tagged: dict[str, Any]):
    run = run_sections(**tagged)
    long = "red ash cod dew elm fig gum hay"
    (short, whole) = rows(cli, run, "ash  red", long)
    assert (short["tokens"], whole["tokens"]) == (["ash", "red"], long.split())
    assert all(tag in ("colour", "other") for tag in [*short["tags"], *whole["tags"][:5]])
    assert whole["tags"][5:] == [None] * 3  # the model reads five words and two special tokens
    blank = {"text": " ", "tokens": None, "tags": None, "reason": "the text is only white space"}
    assert fftmoe.predict(run, [" ", "ash  red"])[0] == blank
    assert_refused(cli("predict", run, "red", "--scores"), "token-classification")


# Measures


def test_evaluate_takes_several_top_k_and_a_source_with_only_the_split_that_it_needs(
    cli: Cli, texts: Path, tmp_path: Path
):
    several = json.loads(cli("evaluate", texts, "--top-k", "1,2").out)
    for measures, k in zip(several, (1, 2), strict=True):
        assert measures == {"top_k": k, **json.loads(cli("evaluate", texts, "--top-k", k).out)}
    (tmp_path / "test.csv").write_text("text,label\nred ash red,red\nred red,red\n")
    measures = json.loads(cli("evaluate", texts, "--data", tmp_path).out)
    assert (measures["num_examples"], list(measures["accuracy_by_label"])) == (2, ["red"])
    assert_refused(cli("evaluate", texts, "--top-k", "1,two"), "--top-k 1,two")
    assert_refused(cli("evaluate", texts, "--data", tmp_path, "--split", "train"), "no train split")


def test_evaluate_prints_labels_as_they_are_written(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    measured = {"accuracy": 1.0, "accuracy_by_label": {"grün": 1.0, "東京": 1.0}}
    monkeypatch.setattr("fftmoe.setup.asked.evaluate_run", lambda *_: measured)
    outcome = cli("evaluate", "a-run")
    assert json.loads(outcome.out) == measured
    assert '"grün"' in outcome.out
    assert '"東京"' in outcome.out


def test_the_data_of_a_run_are_divided_as_the_run_did(
    cli: Cli, run_values: RunValues, recipe_values: dict[str, Any], tmp_path: Path
):
    """A table that nobody has divided is all test rows elsewhere; of the run's own, most are training rows."""
    rows = [{"text": f"{word} {n}", "label": word} for n in range(20) for word in ("red", "blue", "green")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(tmp_path / "rows.jsonl")
    data = {**recipe_values["data"], "source": source}
    folder = run_values({**recipe_values, "data": data}).folder
    own, named = (json.loads(cli("evaluate", folder, *more).out) for more in ((), ("--data", source)))
    assert own == named
    assert own["num_examples"] == 12
    (tmp_path / "others.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    others = json.loads(cli("evaluate", folder, "--data", tmp_path / "others.jsonl", "--split", "train").out)
    assert others["num_examples"] == 60
