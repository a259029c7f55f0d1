"""Personal answers of a finished run: everyone's model, corrected for the labels of a client, a file or the inputs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import fftmoe
from crossed_inputs import Inputs
from fftmoe.backbones import head_inputs
from fftmoe.config import complete_recipe
from fftmoe.data import Examples
from fftmoe.evaluate import predict_logits
from fftmoe.head import (
    PRIOR_STRENGTHS,
    LabelTotals,
    estimated_shares,
    prior_shift,
    smoothed_shares,
)
from fftmoe.rounds.own_choice import Items, added_by, best_choice
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.finished import finished_run, load_federation, load_run, recipe_of
from fftmoe.setup.own_labels import totals_of
from fftmoe.setup.run import run
from fftmoe.store import RunFolder
from fftmoe.tasks import label_form
from fftmoe.trained.inputs import unlabelled_texts
from fftmoe.trained.personal import common_model
from fftmoe.trained.prior import why_no_prior
from fftmoe.trained.run import TrainedModel
from five_clients import FOURIER
from run_fixtures import RunValues
from shared_fixtures import Cli, assert_refused

TEXTS = ("red ash red", "cod blue bay blue", "green dew green elm fig")
HEADS = {
    "one-vs-all": {"kind": "one-vs-all", "learning_rate": 1.0},
    "closed-form": FOURIER,
    "averaged": {"kind": "averaged"},
}
OTHERS = ("ash", "bay", "cod", "dew", "elm", "fig", "gum", "hay", "ink", "jam", "kit")
MakeRun = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(run_values: RunValues, recipe_values: dict[str, Any]) -> MakeRun:
    """`made(head)` returns the folder of the tiny run with this kind of head, whose clients have unlike labels."""
    folders: dict[str, Path] = {}

    def call(head: str) -> Path:
        if head not in folders:
            partition = {"kind": "dirichlet", "alpha": 0.3, "num_clients": 7}
            folders[head] = run_values({**recipe_values, "partition": partition, "head": HEADS[head]}).folder
        return folders[head]

    return call


def parts(folder: Path) -> tuple[Any, Tensor, Tensor]:
    """The form of the labels, everyone's shares, and the logits of everyone's model for the texts."""
    trained = load_run(folder)
    form = label_form(trained.run.task, trained.run.head)
    assert form is not None
    assert trained.run.label_shares is not None
    logits = predict_logits(trained.model, unlabelled_texts(trained.run, TEXTS))
    return form, torch.tensor(trained.run.label_shares, dtype=torch.float64), logits


def labels_of(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["label"] for answer in answers]


def seen(trained: TrainedModel, examples: Examples) -> Items:
    """What the model makes of examples, in their order."""
    logits, read = predict_logits(trained.model, examples), torch.zeros(len(examples), 0)
    if trained.run.head == "closed-form":
        read = torch.cat([head_inputs(trained.model, examples.batch(torch.tensor([n]))) for n in range(len(examples))])
    return Items(logits, read.detach(), examples.labels)


@pytest.mark.parametrize("head", HEADS)
def test_a_run_knows_the_shares_of_all_labels(made: MakeRun, head: str):
    folder = made(head)
    experiment = compose(recipe_of(folder))
    labels = experiment.train.labels[torch.from_numpy(experiment.partition.indices.flat)]
    shares = (torch.bincount(labels, minlength=3).double() / len(labels)).tolist()
    assert finished_run(folder).label_shares == pytest.approx(shares, rel=1e-12)
    said = json.loads((folder / "adapter" / "labels.json").read_text())
    assert ("label_shares" in said) == (head == "closed-form")  # from its sums, as over sites
    state = RunFolder(folder).load_newest().state
    assert state is not None
    assert state.label_shares == (finished_run(folder).label_shares if head == "closed-form" else None)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("client", [0, 4])
def test_a_client_gets_the_common_answer_corrected_for_its_labels(cli: Cli, made: MakeRun, head: str, client: int):
    folder = made(head)
    form, whole, _ = parts(folder)
    recipe = recipe_of(folder)
    uncached = recipe.engine.model_copy(update={"prefix_cache": "off"})
    experiment = compose(recipe.model_copy(update={"engine": uncached}))
    rows = torch.from_numpy(experiment.partition.indices[client])
    own = LabelTotals.of(experiment.train.labels[rows], 3, form)
    shift = prior_shift(smoothed_shares(own, whole, form), whole, form)
    # It has set no rows aside, so it chooses by those that it trains on, each without itself.
    known, trained = experiment.train.select(rows), common_model(load_federation(folder), client)
    logits = predict_logits(trained.model, unlabelled_texts(trained.run, TEXTS))
    items = seen(trained, known)
    choice = best_choice(items, None, own, whole, trained.run.temperature or 1.0, form)
    corrected = logits + (choice.strength * shift).float()
    assert head == "closed-form" or choice.part is None
    if choice.part is not None:
        corrected += added_by(choice.part, seen(trained, unlabelled_texts(trained.run, TEXTS)).features.double())
    found = fftmoe.predict(folder, TEXTS, client=client)
    names = finished_run(folder).label_names
    assert labels_of(found) == [names[best] for best in corrected.argmax(1).tolist()]
    if head != "one-vs-all":
        probabilities = corrected.softmax(1).max(1).values.tolist()
        expected = pytest.approx(probabilities, rel=1e-4)  # batches add in another order
        assert [answer["score"] for answer in found] == expected
    assert {answer["prior"] for answer in found} == {f"client {client}"}
    printed = [json.loads(line) for line in cli("predict", folder, *TEXTS, "--client", client).out.splitlines()]
    assert printed == found


@pytest.mark.parametrize("head", HEADS)
def test_without_a_prior_everyones_answer_stays(made: MakeRun, head: str):
    plain = fftmoe.predict(made(head), TEXTS)
    assert all("prior" not in answer for answer in plain)
    marked = [{**answer, "prior": "none"} for answer in plain]
    assert fftmoe.predict(made(head), TEXTS, prior="none") == marked
    assert fftmoe.predict(made(head), TEXTS, client=2, prior="none") == marked


@pytest.mark.parametrize("head", HEADS)
def test_stated_shares_are_used_and_named(made: MakeRun, head: str, tmp_path: Path):
    names = finished_run(made(head)).label_names
    (tmp_path / "shares.json").write_text(json.dumps({names[1]: 1.0}))
    found = fftmoe.predict(made(head), TEXTS, client=2, prior=str(tmp_path / "shares.json"))
    assert labels_of(found) == [names[1]] * 3  # nothing else occurs there
    assert {answer["prior"] for answer in found} == {"shares.json"}
    whole = finished_run(made(head)).label_shares
    assert whole is not None
    (tmp_path / "whole.json").write_text(json.dumps(dict(zip(names, whole, strict=True))))
    same = fftmoe.predict(made(head), TEXTS, prior=str(tmp_path / "whole.json"))
    assert labels_of(same) == labels_of(fftmoe.predict(made(head), TEXTS))


@pytest.mark.parametrize("head", HEADS)
def test_the_estimate_is_that_of_the_inputs(made: MakeRun, head: str):
    form, whole, logits = parts(made(head))
    shares = estimated_shares(logits, whole, form, smoothing=len(TEXTS))
    corrected = logits + prior_shift(shares, whole, form).float()
    found = fftmoe.predict(made(head), TEXTS, prior="estimate")
    names = finished_run(made(head)).label_names
    assert labels_of(found) == [names[best] for best in corrected.argmax(1).tolist()]
    assert {answer["prior"] for answer in found} == {"estimate"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot read --prior", "No such file", "estimate or none")),
        ("[0.5, 0.5]", ("cannot read --prior", "expected an object")),
        ('{"red": 0.5, "bleu": 0.5}', ("no label 'bleu'", "did you mean 'blue'?")),
        ('{"red": 0.5, "blue": 0.6}', ("add up to 1.1", "must add up to 1")),
        ('{"red": -0.5, "blue": 1.5}', ("the share of 'red' is -0.5", "from 0 to 1")),
        ('{"red": "1"}', ("the share of 'red' is '1'",)),
        ('{"red": true}', ("the share of 'red' is True",)),
        ('{"red": NaN}', ("cannot read --prior",)),
        ("{}", ("add up to 0",)),
    ],
)
def test_what_are_no_shares_of_the_labels_is_said(
    cli: Cli, made: MakeRun, tmp_path: Path, text: str | None, words: tuple[str, ...]
):
    if text is not None:
        (tmp_path / "shares.json").write_text(text)
    assert_refused(cli("predict", made("averaged"), "red", "--prior", tmp_path / "shares.json"), *words)


def test_an_unknown_client_is_refused(cli: Cli, made: MakeRun):
    assert_refused(cli("predict", made("averaged"), "red", "--client", 7), "client 7", "clients 0 to 6")


def test_a_run_says_why_its_answers_cannot_be_corrected(made: MakeRun):
    known = finished_run(made("closed-form"))
    assert why_no_prior(known) is None
    assert "how often its labels occur" in str(why_no_prior(replace(known, label_shares=None)))
    assert "temperature" in str(why_no_prior(replace(known, temperature=None)))
    assert "regression gives no labels" in str(why_no_prior(replace(known, task="regression")))
    assert "causal-lm gives no labels" in str(why_no_prior(replace(known, task="causal-lm", head=None)))


def finished(inputs: Inputs, task: str, folder: Path, **sections: Any) -> Path:
    values = {**inputs.recipe(task), "partition": {"kind": "iid", "num_clients": 3}, **sections}
    values["evaluation"] = {"baselines": "off"}
    run(complete_recipe(values, "tiny")[0], folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs.write(tmp_path_factory.mktemp("inputs"))


def pictures(folder: Path) -> str:
    """A folder with two pictures."""
    for name in ("first", "second"):
        Image.new("RGB", (8, 8), "red").save(folder / f"{name}.png")
    return str(folder)


@pytest.mark.parametrize("task", ["multi-label-classification", "token-classification", "image-classification"])
def test_other_labels_are_corrected_in_their_own_form(inputs: Inputs, tmp_path: Path, task: str):
    folder = finished(inputs, task, tmp_path / "run")
    known = finished_run(folder)
    experiment = compose(recipe_of(folder))
    form = label_form(task, known.head)
    assert form is not None
    everyone = totals_of(experiment.train, experiment.partition.indices.flat, len(known.label_names), form)
    assert known.label_shares == pytest.approx(everyone.shares(form).tolist(), rel=1e-12)
    never, always = known.label_names[:2]
    (tmp_path / "shares.json").write_text(json.dumps({never: 0.0, always: 1.0}))
    asked = [pictures(tmp_path)] if task == "image-classification" else TEXTS
    found = fftmoe.predict(folder, asked, prior=str(tmp_path / "shares.json"))
    given = {"multi-label-classification": "labels", "token-classification": "tags", "image-classification": "label"}
    for answer in found:
        said = answer[given[task]]
        assert set([said] if isinstance(said, str) else said) == {always}
    assert {answer["prior"] for answer in fftmoe.predict(folder, asked, client=1)} == {"client 1"}


@pytest.mark.parametrize("task", ["regression", "causal-lm"])
def test_a_task_without_labels_has_no_prior(inputs: Inputs, tmp_path: Path, cli: Cli, task: str):
    folder = finished(inputs, task, tmp_path / "run")
    assert "label_shares" not in json.loads((folder / "adapter" / "labels.json").read_text())
    for prior in ("estimate", "shares.json"):
        assert_refused(cli("predict", folder, "red", "--prior", prior), f"task {task} gives no labels", "--prior none")
    asked = ("predict", folder, "red", "--prior", "none", "--client", 1, "--max-new-tokens", 3)
    assert cli(*asked).status == 0


def test_a_place_that_was_in_no_round_finds_its_shares(cli: Cli, made: MakeRun, tmp_path: Path):
    folder = made("averaged")
    names, (form, whole, _) = finished_run(folder).label_names, parts(folder)
    rows = [{"text": f"{names[2]} ash", "label": names[2]}] * 5 + [{"text": f"{names[0]} bay", "label": names[0]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = cli("personalize", folder, "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "shares.json")
    assert (outcome.status, outcome.err) == (0, "")
    assert "shares of 3 labels from 6 rows" in outcome.out
    found = json.loads((tmp_path / "shares.json").read_text())
    assert list(found) == list(names)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    # They are the smoothed shares of the rows, or nearer to everyone's.
    own = smoothed_shares(LabelTotals.of(torch.tensor([2] * 5 + [0]), 3, form), whole, form)
    possible = [
        form.probabilities(form.logits_of(whole) + part * prior_shift(own, whole, form)) for part in PRIOR_STRENGTHS
    ]
    assert any(list(found.values()) == pytest.approx(shares.tolist(), abs=1e-6) for shares in possible)
    answers = fftmoe.predict(folder, TEXTS, prior=str(tmp_path / "shares.json"))
    assert {answer["prior"] for answer in answers} == {"shares.json"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "asked", [{"client": 4}, {"prior": "estimate"}, {"prior": "shares.json"}, {"client": 2, "prior": "none"}]
)
def test_what_is_measured_are_the_answers_that_are_given(
    cli: Cli, made: MakeRun, tmp_path: Path, head: str, asked: dict[str, Any]
):
    folder = made(head)
    names = finished_run(folder).label_names
    texts = [f"{word} {other}" for word in ("red", "blue", "green") for other in OTHERS]
    rows = [{"text": text, "label": names[place % 3]} for place, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "shares.json").write_text(json.dumps({names[0]: 0.75, names[2]: 0.25}))
    if asked.get("prior") == "shares.json":
        asked = {"prior": str(tmp_path / "shares.json")}
    options = [text for name, value in asked.items() for text in (f"--{name}", value)]
    outcome = cli("evaluate", folder, "--data", tmp_path / "rows.jsonl", "--split", "train", *options)
    assert (outcome.status, outcome.err) == (0, "")
    found, answers = json.loads(outcome.out), fftmoe.predict(folder, texts, **asked)
    right = [answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right), rel=1e-12)
    assert found["prior"] == answers[0]["prior"]


@pytest.mark.parametrize("head", ["averaged", "closed-form"])
def test_evaluate_measures_what_the_summary_lists(cli: Cli, made: MakeRun, tmp_path: Path, head: str):
    """At the tier of the client, not at the largest one."""
    folder = made(head)
    experiment, clients = compose(recipe_of(folder)), json.loads((folder / "summary.json").read_text())["clients"]
    small = [number for number, tier in enumerate(clients["tier"]) if tier == "small"]
    assert small
    assert clients["personal"]
    texts = [json.loads(cli("evaluate", folder, "--client", client).out)["accuracy_by_label"] for client in small]
    labels = experiment.train.labels.numpy()
    for client, by_label in zip(small, texts, strict=True):
        mix = experiment.partition.label_distribution(labels, 3, range(client, client + 1))[0]
        known = [share for name, share in zip(experiment.label_names, mix, strict=True) if name in by_label]
        found = [by_label[name] for name in experiment.label_names if name in by_label]
        own = sum(a * b for a, b in zip(known, found, strict=True)) / sum(known)
        assert clients["personal"][client] == pytest.approx(own, abs=1e-3)


def test_one_row_gives_no_private_part(cli: Cli, made: MakeRun, tmp_path: Path):
    """Judged by the others, of which there are none, every part is level with none; rounding chose one."""
    (tmp_path / "row.jsonl").write_text(json.dumps({"text": "ash red red", "label": "red"}) + "\n")
    outcome = cli("personalize", made("closed-form"), "--data", tmp_path / "row.jsonl", "--output", tmp_path / "place")
    assert outcome.status == 0, outcome.err
    said = json.loads((tmp_path / "place" / "place.json").read_text())
    assert (said["rows"], said["private_part"]) == (1, False)


def test_what_cannot_be_measured_is_said(cli: Cli, made: MakeRun):
    folder = made("averaged")
    assert_refused(cli("evaluate", folder, "--client", "nobody"), "client nobody does not exist")
    assert_refused(cli("evaluate", folder, "--prior", "nowhere.json"), "cannot read --prior")
    assert_refused(cli("evaluate", folder, "--harness", "arc", "--client", 1), "leave --client and --prior out")


@pytest.mark.parametrize("head", ["averaged", "closed-form"])
def test_a_place_gets_a_model_of_its_own(cli: Cli, made: MakeRun, tmp_path: Path, head: str):
    """Its rows call everything by another name than everyone does: what the common model cannot know."""
    folder = made(head)
    names = finished_run(folder).label_names
    words = {"red": names[1], "blue": names[2], "green": names[0]}
    rows = [{"text": f"{word} {other}", "label": label} for word, label in words.items() for other in OTHERS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = cli("personalize", folder, "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "place")
    assert (outcome.status, outcome.err) == (0, "")
    fitted = "a private part that was fitted to 33 rows" in outcome.out
    assert fitted == (head == "closed-form")
    said = json.loads((tmp_path / "place" / "place.json").read_text())
    assert ("the label shares of 33 rows" in outcome.out) == said["corrected"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "place").iterdir() if path.is_file()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o700
    asked = [f"{word} ivy" for word in words]
    found = fftmoe.predict(tmp_path / "place", asked)
    if fitted:
        assert labels_of(found) == list(words.values())
    assert_refused(cli("resume", tmp_path / "place"), "holds the model of one place", "no rounds")
    # The run is as it was, and the place is a run like any other: it can be corrected for a place of its own.
    assert cli("evaluate", tmp_path / "place", "--data", tmp_path / "rows.jsonl", "--split", "train").status == 0
    assert_refused(
        cli("personalize", folder, "--data", tmp_path / "rows.jsonl", "--output", folder), "holds another run"
    )


def test_a_clients_own_answers_leave_the_common_model_as_it_is(
    run_values: RunValues, recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Private parts are fitted after the rounds, so a run whose clients have none ends with the same bytes."""
    values = {**recipe_values, "head": HEADS["closed-form"]}
    measured = run_values(values)
    assert set(measured.summary["clients"]["answer"]) <= {"common", "corrected", "private part"}
    assert all(margin >= 0 for margin in measured.summary["clients"]["margin"])
    monkeypatch.setattr(Experiment, "own_labels", None)
    plain = run_values(values)
    assert "answer" not in plain.summary["clients"]
    state = f"checkpoints/{max(path.name for path in (plain.folder / 'checkpoints').glob('*.safetensors'))}"
    for part in ("adapter/adapter_model.safetensors", "adapter/labels.json", state):
        assert (measured.folder / part).read_bytes() == (plain.folder / part).read_bytes()


def test_a_client_that_trained_by_itself_is_not_corrected(run_values: RunValues, recipe_values: dict[str, Any]):
    """Its model has learned from its own labels only, so everyone's are not in it."""
    folder = run_values({**recipe_values, "method": "local-only", "head": HEADS["averaged"]}).folder
    summary = json.loads((folder / "summary.json").read_text())
    assert "personal" not in summary["clients"]
    assert summary["own_data"].keys() == {"own_model"}
    assert {answer["prior"] for answer in fftmoe.predict(folder, TEXTS, client=2)} == {"none"}


def test_what_cannot_be_personalized_is_said(cli: Cli, made: MakeRun, inputs: Inputs, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "ash", "label": "mauve"}) + "\n")
    to = ("--output", tmp_path / "shares.json")
    asked = ("personalize", made("averaged"), "--data", tmp_path / "rows.jsonl", *to)
    assert_refused(cli(*asked), "mauve")
    assert_refused(cli("personalize", made("averaged"), "--data", tmp_path / "nowhere.csv", *to), "nowhere.csv")
    numbers = finished(inputs, "regression", tmp_path / "numbers")
    assert_refused(
        cli("personalize", numbers, "--data", tmp_path / "rows.jsonl", *to), "task regression gives no labels"
    )
    assert not (tmp_path / "shares.json").exists()
