"""The model card of an adapter says how it was trained, and no name in it can act."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import fftmoe
from fftmoe.exports.card import CardPrivacy, escape_markdown, figures_of_run, model_card, shown_name
from fftmoe.setup.export import card_facts
from fftmoe.setup.finished import load_run


def test_the_card_has_front_matter_for_a_hub_and_facts_for_a_person(texts: Path, out: Path):
    fftmoe.export(texts, "peft", out)
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(front)
    assert (values["library_name"], values["pipeline_tag"]) == ("peft", "text-classification")
    assert "base_model" not in values  # it is a local folder
    summary = json.loads((texts / "summary.json").read_text())
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == summary["accuracy"]
    for words in ("not private by themselves", "rounds: 2 with", "| accuracy as tier small uses it |", "small (60%"):
        assert words in body
    assert str(texts) not in body


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("ORGANISATION/data-set.v2", "ORGANISATION/data-set.v2"),
        ("builtin:stdlib-docs", "builtin:stdlib-docs"),
        ("/home/ivy/records/notes.csv", "notes.csv"),
        ("/home/ivy/records/", "records"),
        ("~/records", "records"),
        ("./records", "records"),
        ("../ivy/records", "records"),
        ("home/ivy/records", "records"),
        ("C:\\Users\\ivy\\notes.csv", "notes.csv"),
    ],
)
def test_of_a_place_on_a_machine_a_card_shows_the_name_only(place: str, shown: str):
    """Also of one that is on another machine."""
    assert shown_name(place) == shown


def test_a_file_or_a_folder_is_no_name_of_a_hub_although_it_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ivy" / "records").mkdir(parents=True)
    (tmp_path / "ivy" / "notes.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert (shown_name("ivy/records"), shown_name("ivy/notes.csv")) == ("records", "notes.csv")


@pytest.mark.parametrize(("metric", "value"), [("f1", 0.625), ("mean_absolute_error", 1.75)])
def test_the_card_shows_the_main_metric_of_the_run(texts: Path, tmp_path: Path, metric: str, value: float):
    shutil.copytree(texts, tmp_path / "run")
    summary = json.loads((texts / "summary.json").read_text())
    of_accuracy = {"accuracy", "accuracy_by_tier", "metric"}
    other = {name: found for name, found in summary.items() if name not in of_accuracy}
    other |= {"metric": metric, metric: value, f"{metric}_by_tier": {"small": 0.5}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(other))
    facts = card_facts(tmp_path / "run")
    card = model_card(load_run(texts).run, facts, "", figures_of_run(facts, own=True))
    front = yaml.safe_load(card.split("---\n", 2)[1])
    assert front["metrics"] == [metric]
    assert [found["type"] for found in front["model-index"][0]["results"][0]["metrics"]] == [metric, metric]
    shown = metric.replace("_", "\\_")
    assert f"| {shown} on the test split | {value} |\n| {shown} as tier small uses it | 0.5 |" in card


def test_a_runs_own_adapter_has_a_card(texts: Path):
    """PEFT would leave a form there that nobody has filled in."""
    card, summary = (texts / "adapter" / "README.md").read_text(), json.loads((texts / "summary.json").read_text())
    _, front, body = card.split("---\n", 2)
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == summary["accuracy"]
    low, high = summary["accuracy_interval"]
    for words in (
        "task: sequence-classification, labels: 3 (blue, green, red)",
        "backbone: ",
        f"The 95 % interval of the accuracy is {low:.4g} to {high:.4g}.",
        "one machine held the raw data of all clients",
        "licence of its own",
        "PeftModel.from_pretrained(backbone",
    ):
        assert words in body
    for words in ("More Information Needed", "never left", str(texts), str(Path.home())):
        assert words not in card


@pytest.mark.parametrize("over_sites", [False, True])
def test_only_sites_keep_their_raw_data(texts: Path, tmp_path: Path, over_sites: bool):
    shutil.copytree(texts, tmp_path / "run")
    if over_sites:
        (tmp_path / "run" / "sites.json").write_text("{}")
    facts = card_facts(tmp_path / "run")
    for privacy in (None, CardPrivacy()):
        own = replace(facts, privacy=privacy)
        card = model_card(load_run(texts).run, own, own.how_trained("fft-moe"), figures_of_run(own, own=True))
        assert ("never left the sites" in card) == ("sites that kept their data" in card) == over_sites
        assert ("one machine held" in card) == ("simulated on one machine" in card) == (not over_sites)


def test_a_label_cannot_act_in_a_card(texts: Path):
    facts = card_facts(texts)
    run = replace(load_run(texts).run, label_names=("<script>", "a\n# b", "![x](http://y)"), name="<b>\x1b[31m")
    card = model_card(run, facts, "", figures_of_run(facts, own=True))
    assert "labels: 3 (\\<script\\>, a # b, !\\[x\\](http://y))" in card
    assert "\x1b" not in card
    assert "\n# b" not in card


def test_names_are_escaped_where_markdown_would_read_them_as_markup():
    assert escape_markdown("a|b\n<i>_c_</i> [d](e)") == "a\\|b \\<i\\>\\_c\\_\\</i\\> \\[d\\](e)"
