"""Whole federations that learn which of two answers is better, and the recipes and rows that are refused."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fftmoe.backbones import outputs
from fftmoe.config import complete_recipe, parse_recipe
from fftmoe.data import Preferences
from fftmoe.deploy.job import make_job, read_profile
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.errors import InputError
from fftmoe.methods.registry import METHODS
from fftmoe.report.progress import Progress
from fftmoe.setup.asked import predict_run
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.deployment import compose_deployed, load_server_data
from fftmoe.setup.export import export_run
from fftmoe.setup.finished import evaluate_run, load_run
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import begin, resume, run
from fftmoe.tasks import PairLoss
from fftmoe.tasks.preference import PAIR_LOSSES
from finished import Finished
from five_clients import changed
from interrupting import Killed, interrupt, results
from language import save_language_model, save_pairs
from policies import allow
from run_fixtures import RunLanguage
from shared_fixtures import Cli
from sites import Sites

AUTHORS = {"partition": {"kind": "natural", "by": "author"}}
METRIC = "preference_accuracy"


def test_a_run_learns_the_preference_from_chance_and_its_measures_agree(run_preference: RunLanguage):
    finished = run_preference(**AUTHORS, federation__rounds=5, evaluation={"personal": True, "local_only": True})
    summary = finished.summary
    assert summary["metric"] == METRIC
    first, last = finished.rows[0], finished.rows[-1]
    # Before training the model is its own reference: the margin of every pair is zero up to rounding.
    assert first[METRIC] == 0.5
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert last[METRIC] > 0.6
    assert last["reward_margin"] > 0
    assert last["loss"] < first["loss"]
    assert all(name in summary for name in (f"client_{METRIC}", f"personal_{METRIC}", f"local_only_{METRIC}"))
    measured = evaluate_run(finished.folder)
    assert measured[METRIC] == summary[METRIC]
    assert measured["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert [*measured[f"{METRIC}_by_label"]] == ["author-0", "author-1", "author-2"]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("fft-moe", "fedit", "flora", "local-only") else pytest.mark.slow)
        for name, spec in METHODS.items()
        if spec.capabilities.trains != "head"
    ],
)
def test_every_method_learns_a_preference(run_preference: RunLanguage, method: str):
    """FLoRA adds to the frozen weights, and the reference stays what it was before."""
    finished = run_preference(method=method)
    summary = finished.summary
    assert summary["clients_failed"] == 0
    assert summary["loss"] < math.log(2)
    if not METHODS[method].capabilities.personal:
        assert evaluate_run(finished.folder)["loss"] == pytest.approx(summary["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_every_loss_is_trained_and_measured_again(run_preference: RunLanguage, kind: str):
    finished = run_preference(preference={"loss": kind, "beta": 0.5})
    rows, summary = finished.rows, finished.summary
    assert summary["loss"] < rows[0]["loss"]
    assert evaluate_run(finished.folder)["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert (rows[0][METRIC] == 0.5) == PAIR_LOSSES[kind].has_reference


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"min_contributors": 2}, "adapter__residents": "balanced"},
        pytest.param(
            {
                "privacy": {
                    "min_contributors": 2,
                    "examples": {"clip_norm": 0.5, "noise_multiplier": 0.3, "delta": 1e-3, "epsilon": 1e5},
                },
                "adapter__residents": "balanced",
                "adapter__balance": "switch",
            },
            marks=pytest.mark.slow,
        ),
        {"federation__upload": "int8", "data__validation": 0.2, "evaluation": {"keep": "best"}},
        {"partition": {"kind": "shards", "num_clients": 5, "shards_per_client": 1}, "data__label": "kind"},
        {"data__chat_template": True},
        {"federation__group_by_length": True},
    ],
    ids=["sums", "private examples", "validated", "shards", "chats", "like lengths"],
)
def test_other_settings(run_preference: RunLanguage, changes: dict[str, Any]):
    summary = run_preference(**changes).summary
    assert summary["clients_failed"] == 0
    assert 0 < summary["loss"] < (math.log(2) if "examples" not in changes.get("privacy", {}) else math.inf)


def test_cached_states_and_a_cache_of_references_change_nothing_beyond_rounding(
    run_preference: RunLanguage, preference_values: dict[str, Any]
):
    kept, computed = run_preference(), run_preference(engine={"prefix_cache": "off"})
    train = compose(parse_recipe(preference_values, "test")).train
    assert isinstance(train, Preferences)
    assert hasattr(train.answers, "block")
    assert train.reference.all()
    # Batches of other widths round otherwise, and training carries it on.
    assert kept.summary["loss"] == pytest.approx(computed.summary["loss"], rel=1e-4)


def test_parts_of_a_step_and_blocks_computed_again_give_the_gradients_of_the_step(
    run_preference: RunLanguage, preference_values: dict[str, Any]
):
    engine = {**preference_values["engine"], "micro_batch_size": 2, "checkpointing": True}
    with_parts = run_preference(engine=engine, adapter__balance="none", adapter__z_strength=0.0)
    whole = run_preference(adapter__balance="none", adapter__z_strength=0.0)
    # Sums of float32 numbers in another order, carried on by AdamW.
    assert with_parts.summary["loss"] == pytest.approx(whole.summary["loss"], rel=1e-4)


def test_a_pair_may_have_twice_as_many_tokens_as_a_text(preference_values: dict[str, Any]):
    """What a server expects of a client, and with differential privacy what a plan counts, is at most two texts."""
    hidden = {"clip_norm": 0.5, "noise_multiplier": 0.5, "delta": 1e-3, "epsilon": 1e4}
    values = changed(preference_values, privacy={"min_contributors": 2, "examples": hidden}, adapter__balance="switch")
    experiment = compose(parse_recipe(changed(values, adapter__residents="balanced"), "test"), measures=False)
    assert experiment.mean_tokens == 2 * 19
    plain = compose(parse_recipe(preference_values, "test"), measures=False)
    assert plain.mean_tokens == float(plain.train.lengths.double().mean())
    assert int(plain.train.lengths.max()) > 19 // 2


def test_a_worker_runs_from_the_cached_states_of_pairs(preference_values: dict[str, Any]):
    """A new process builds its own model, and must prepare it for states below the adapter."""
    experiment = compose(parse_recipe(preference_values, "test"))
    client = build_client(client_spec(experiment, NoStates()))
    assert client.model is not experiment.model
    batch = experiment.train.batch([0, 3])
    with torch.inference_mode():
        there, here = (outputs(model, batch, next_token=True) for model in (client.model, experiment.model))
    assert "prefix_states" in batch
    assert torch.equal(there, here)


def test_a_plan_computes_no_reference(preference_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fftmoe.setup.compose.with_references", None)
    found = forecast(parse_recipe(preference_values, "test"))
    assert found.prefix_refused is None
    train = compose(parse_recipe(preference_values, "test"), measures=False).train
    assert found.prefix_bytes == pytest.approx(4 * 20 * int(train.lengths.sum()) * (61 + 23) / 61, rel=0.3)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(run_preference: RunLanguage):
    one, two = (run_preference(engine={"workers": workers}) for workers in (1, 2))
    assert results(one.folder) == results(two.folder)
    assert one.rows[-1][METRIC] == two.rows[-1][METRIC]


def test_the_rest_of_a_run_gives_the_bytes_of_the_whole(
    preference_values: dict[str, Any], run_preference: RunLanguage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "before the checkpoint", 1)
        with pytest.raises(Killed):
            run(parse_recipe(preference_values, "test"), folder)
    resume(folder)
    assert results(folder) == results(run_preference().folder)
    assert Finished(folder).summary[f"{METRIC}_by_round"] == run_preference().summary[f"{METRIC}_by_round"]


def test_sites_compute_their_own_references_and_produce_the_bytes_of_one_machine(
    preference_values: dict[str, Any], tmp_path: Path
):
    values = changed(preference_values, **AUTHORS, data__validation=0.2, evaluation={"every": 1})
    local = run(parse_recipe(values, "here"), tmp_path / "local")
    tiers = [budget.name for budget in compose(parse_recipe(values, "here")).budgets.values()]
    rows = Path(values["data"]["source"])
    (tmp_path / "server").mkdir()
    shutil.copy(rows / "test.csv", tmp_path / "server")
    recipe = parse_recipe(changed(values, data__source=str(tmp_path / "server")), "there")
    data = load_server_data(recipe)
    job = json.loads(json.dumps(make_job(recipe.model_dump(mode="json"), data.label_names, "abc1")))
    own = []
    for client in range(3):
        name = f"author-{client}"
        with (rows / "train.csv").open(newline="") as file:
            mine = [row for row in csv.DictReader(file) if row["author"] == name]
        (tmp_path / name).mkdir()
        with (tmp_path / name / "train.csv").open("w", newline="") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, ["prompt", "chosen", "rejected"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(mine)
        state = tmp_path / f"{name}-state"
        allow(state, recipe, labels=[])
        own.append(open_site(SiteSettings(name, client, tmp_path / name, tiers[client], state), job))
    profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in own]
    experiment = compose_deployed(recipe, data, {p.site: p for p in profiles}, {p.site: p.client_id for p in profiles})
    remote = begin(experiment, recipe, tmp_path / "remote", Progress.silent(), lambda *_: Sites(own))
    saved = "adapter/adapter_model.safetensors"
    assert (remote.folder / saved).read_bytes() == (local.folder / saved).read_bytes()
    for key in (f"{METRIC}_by_round", f"validation_{METRIC}", "bytes_up", "bytes_down"):
        assert remote.summary[key] == local.summary[key]


def test_a_tuned_model_continues_prompts(run_preference: RunLanguage):
    """It is a language model: it answers a prompt, and which of two answers is better is measured by `evaluate`."""
    answers = predict_run(run_preference().folder, ["say ash", " "], max_new_tokens=3)
    assert [answer["prompt"] for answer in answers] == ["say ash", " "]
    assert answers[0]["completion"] is not None
    assert answers[1]["reason"] == "the text is only white space"


def test_which_of_two_answers_is_better_is_measured_on_any_table(run_preference: RunLanguage, tmp_path: Path, cli: Cli):
    folder, other = run_preference().folder, tmp_path / "other.csv"
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *[("say ash", "ash", "bay")] * 5])
    found = evaluate_run(folder, str(other), "train")
    assert found[METRIC] in (0.0, 1.0)  # five equal pairs
    assert found["num_examples"] == 5
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen"), ("say ash", "ash")])
    outcome = cli("evaluate", folder, "--data", other, "--split", "train")
    assert outcome.status == 2
    assert "no column 'rejected'" in outcome.err


def test_a_tuned_model_is_talked_with(run_preference: RunLanguage, cli: Cli):
    folder = run_preference(data__chat_template=True).folder
    outcome = cli("chat", folder, "--prompt", "say ash", "--max-new-tokens", "3")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("kind", ["peft", "lora"])
def test_an_export_is_a_language_model(run_preference: RunLanguage, tmp_path: Path, kind: str):
    finished = run_preference()
    export_run(finished.folder, kind, tmp_path / "out", {"rank": 2, "steps": 1} if kind == "lora" else {})
    card = (tmp_path / "out" / "README.md").read_text().replace("\\", "")
    assert "preference_accuracy on the test split" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "learned which of two answers is better, with the loss dpo (beta 0.5)." in card
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    if kind == "lora":
        measured = json.loads((tmp_path / "out" / "export.json").read_text())["metric"]
        assert measured["backbone_alone"][METRIC] == 0.5
        assert measured["mixture_of_experts"]["loss"] == pytest.approx(finished.summary["loss"], rel=1e-4)


def test_the_same_adapter_continues_a_run_that_imitated(
    run_preference: RunLanguage, preference_values: dict[str, Any], tmp_path: Path
):
    """A run on completions, and then a preference from there; the reference stays the backbone without adapter."""
    imitated = changed(preference_values, backbone__task="causal-lm")
    imitated["data"] = {**imitated["data"], "completion": "chosen"}
    del imitated["data"]["chosen"], imitated["data"]["rejected"], imitated["preference"]
    first = run(parse_recipe(imitated, "first"), tmp_path / "first").folder
    second = run(parse_recipe(changed(preference_values, start_from=str(first)), "second"), tmp_path / "second")
    rows = Finished(second.folder).rows
    assert rows[0]["reward_margin"] > 0.01
    plain = compose(parse_recipe(preference_values, "plain"))
    started = compose(parse_recipe(changed(preference_values, start_from=str(first)), "second"))
    assert isinstance(plain.train, Preferences)
    assert isinstance(started.train, Preferences)
    assert torch.equal(plain.train.reference, started.train.reference)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": {"kind": "averaged", "learning_rate": 1.0}}, ("preference", "no head", "remove the section `head`")),
        ({"method": "head-only"}, ("head-only", "language model", "choose another")),
        ({"data__chosen": "better"}, ("no column 'better'", "data.chosen")),
        ({"data__prompt": "question"}, ("no column 'question'", "data.prompt")),
        ({"data__rejected": None}, ("data.chosen and data.rejected belong together",)),
        ({"data__chosen": None, "data__rejected": None, "data__completion": "chosen"}, ("needs data.prompt",)),
        ({"data__completion": "chosen"}, ("leave data.completion out",)),
        ({"data__rejected": "chosen"}, ("are not three columns",)),
        ({"data__max_length": 38}, ("data.max_length=38", "37 tokens")),
        ({"data__max_length": 1}, ("data.max_length=1 leaves nothing",)),
        ({"engine__clients_per_batch": 2}, ("clients_per_batch=2", "preference", "one client at a time")),
        ({"evaluation__generate": {"examples": 3, "max_new_tokens": 2}}, ("evaluation.generate", "has none")),
        ({"preference": {"loss": "dpo", "margin": 0.5}}, ("preference.margin=0.5", "simpo")),
        ({"preference": {"loss": "orpo"}, "engine__micro_batch_size": 2}, ("micro_batch_size=2", "orpo", "simpo")),
        ({"preference": {"loss": "kto"}}, ("preference.loss", "kto")),
        ({"preference": {"beta": 0}}, ("preference.beta",)),
        ({"backbone__task": "causal-lm"}, ("has no pairs of answers", "section `preference`")),
    ],
)
def test_a_recipe_that_cannot_be_run(
    preference_values: dict[str, Any], tmp_path: Path, cli: Cli, changes: dict[str, Any], words: tuple[str, ...]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(preference_values, **changes)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 2
    assert not (tmp_path / "run").exists()
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("say ash", "ash", "")], r"column 'rejected' is empty in row 1"),
        ([("say ash", "ash", "bay"), ("say", " ", "bay")], r"column 'chosen' is empty in row 2"),
        ([(" ", "ash", "bay")], r"column 'prompt' is empty in row 1"),
        ([("say ash", "#", "bay")], r"nothing of '#' \(row 1\) is left to learn"),
        ([("say ash", "ash", "ash"), ("say", "bay", "bay")], r"equal in every row .* data.chosen and data.rejected"),
    ],
)
def test_rows_from_which_nothing_can_be_learned(
    preference_values: dict[str, Any], tmp_path: Path, rows: list[tuple[str, str, str]], words: str
):
    data = save_pairs(tmp_path / "data")
    with (data / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *rows])
    with pytest.raises(InputError, match=words):
        compose(parse_recipe(changed(preference_values, data__source=str(data)), "test"))


def test_pairs_with_equal_answers_are_counted_and_not_judged(
    preference_values: dict[str, Any], tmp_path: Path, cli: Cli
):
    data = save_pairs(tmp_path / "data")
    for split in ("train", "test"):
        with (data / f"{split}.csv").open("a", newline="") as file:
            csv.writer(file).writerows([("say ash", "ash", "ash", "once", "author-0")] * 3)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(preference_values, data__source=str(data), federation__rounds=1)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    for said in ("training rows: 3 of 64 pairs have equal answers", "test rows: 3 of 26 pairs have equal answers"):
        assert said in " ".join((outcome.out + outcome.err).split())
    # Accuracies are shares of the 23 pairs that say something.
    right = 23 * 2 * Finished(tmp_path / "run").summary[METRIC]
    assert right == pytest.approx(round(right), abs=1e-9)


def test_a_model_without_chat_template_is_named(preference_values: dict[str, Any], tmp_path: Path):
    values = changed(preference_values, backbone__model=str(save_language_model(tmp_path / "model")))
    with pytest.raises(InputError, match="has no chat template; set data"):
        compose(parse_recipe(changed(values, data__chat_template=True), "test"))


def test_columns_of_usual_names_are_found_and_messages_stand_for_the_last_of_them(
    preference_values: dict[str, Any], tmp_path: Path
):
    """As the hub has them: conversations in the place of answers, and their prompt as a text."""
    told, plain = tmp_path / "told.jsonl", tmp_path / "plain.jsonl"
    answers = [("say ash", "ash", "bay"), ("say cod", "cod cod", "dew")] * 11
    said = [
        {
            "question": prompt,
            **{
                key: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
                for key, text in (("chosen", chosen), ("rejected", rejected))
            },
        }
        for prompt, chosen, rejected in answers
    ]
    told.write_text("".join(json.dumps(row) + "\n" for row in said))
    plain.write_text(
        "".join(json.dumps(dict(zip(("question", "chosen", "rejected"), row, strict=True))) + "\n" for row in answers)
    )
    stated = {"backbone": {"model": preference_values["backbone"]["model"]}}
    first, second = (complete_recipe({**stated, "data": {"source": str(place)}}, "test")[0] for place in (told, plain))
    assert (first.backbone.task, first.data.prompt, first.data.chosen) == ("preference", "question", "chosen")
    assert first.preference is not None
    assert (first.preference.loss, first.preference.beta, first.preference.margin) == ("dpo", 0.1, 0.0)
    assert first.adapter.blocks == "all"
    assert first.data.chat_template
    assert first.data.max_length == second.data.max_length
    one, other = (compose(recipe, measures=False).train for recipe in (first, second))
    assert isinstance(one, Preferences)
    assert isinstance(other, Preferences)
    assert torch.equal(one.answers.batch([0])["input_ids"], other.answers.batch([0])["input_ids"])


def test_defaults_of_simpo():
    stated = {"data": {"source": "nowhere", "prompt": "p", "chosen": "c", "rejected": "r"}}
    found = complete_recipe({**stated, "preference": {"loss": "simpo"}}, "test", may_read=False)[0]
    assert found.preference is not None
    assert (found.backbone.task, found.preference.beta, found.preference.margin) == ("preference", 2.0, 1.0)
    assert found.federation.learning_rate == 5e-5


def test_the_page_and_the_lines_name_the_metric(run_preference: RunLanguage, cli: Cli):
    folder = run_preference().folder
    assert "preference accuracy" in (folder / "report.html").read_text()
    outcome = cli("evaluate", folder)
    assert outcome.status == 0
    assert METRIC in outcome.out
    assert load_run(folder).run.pair_loss == PairLoss("dpo", beta=0.5)
