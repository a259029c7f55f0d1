"""Whole federations of a tiny language model, and the recipes that are refused."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.backbones import load_tokenizer
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import resume, run
from finished import Finished
from five_clients import changed
from interrupting import Killed, interrupt, results
from run_fixtures import RunLanguage
from shared_fixtures import Cli, assert_refused


def test_a_run_reports_its_perplexity_under_the_name_of_the_metric(run_language: RunLanguage):
    finished = run_language(
        partition={"kind": "natural", "by": "author"},
        evaluation={
            "baselines": "off",
            "personal": True,
            "local_only": True,
            "generate": {"examples": 7, "max_new_tokens": 5},
        },
    )
    summary = finished.summary
    assert summary["metric"] == "perplexity"
    assert "labels" not in summary
    assert summary["perplexity"] == pytest.approx(math.exp(summary["loss"]))
    assert summary["perplexity_by_tier"]["large"] == summary["perplexity"]
    assert summary["num_clients"] == 3
    for key in ("client_perplexity", "personal_perplexity", "local_only_perplexity", "local_only_client_perplexity"):
        assert summary[key]["worst_decile"] >= summary[key]["mean"] > 1  # the bad side is the high one
    assert 0 <= summary["exact_match"] <= summary["rouge_l"] <= 1
    assert summary["generated"] == 7
    rows = finished.rows
    assert [row["metric"] for row in rows] == ["perplexity"] * 3
    assert rows[-1]["perplexity"] == summary["perplexity"]
    assert rows[-1]["loss"] == summary["loss"]
    assert not any("accuracy" in key for key in (*summary, *rows[-1]))
    assert json.loads((finished.folder / "adapter" / "labels.json").read_text()) == {"labels": []}
    measured = evaluate_run(finished.folder)
    assert measured["perplexity"] == pytest.approx(summary["perplexity"], rel=1e-5)
    assert [*measured["perplexity_by_label"]] == ["author-0", "author-1", "author-2"]
    for key in ("exact_match", "rouge_l", "generated", "generated_by_client", "generated_by_label"):
        assert measured[key] == summary[key], key
    assert summary["generated_by_client"] == summary["generated_by_label"]  # a client is what divides the rows
    assert sum(own["generated"] for own in summary["generated_by_client"].values()) == 7


@pytest.mark.parametrize(
    "method",
    [
        "fedit",
        "local-only",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("ffa-lora", "fedsa-lora", "hetlora", "flora", "flexlora", "flame", "centralized")
        ),
    ],
)
def test_every_method_trains_a_language_model(run_language: RunLanguage, method: str):
    summary = run_language(method=method).summary
    assert summary["clients_failed"] == 0
    assert summary["perplexity"] < summary["perplexity_by_round"].get("0", math.inf)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"text": "text", "max_length": 19, "validation": "off"}},
        {"partition": {"kind": "shards", "num_clients": 5, "shards_per_client": 1}, "data__label": "kind"},
        {"privacy": {"min_contributors": 2}, "adapter__residents": "balanced"},
        {"federation__upload": "int8", "adapter__shared_dim": 2, "adapter__shared_rank": 1},
    ],
    ids=["texts", "shards", "private", "int8"],
)
def test_other_data_and_settings(run_language: RunLanguage, language_values: dict[str, Any], changes: dict[str, Any]):
    changes = {
        key: value if key != "data" else {"source": language_values["data"]["source"], **value}
        for key, value in changes.items()
    }
    summary = run_language(**changes).summary
    assert summary["clients_failed"] == 0
    assert summary["perplexity"] < summary["perplexity_by_round"]["0"]


def test_a_plan_costs_no_head(language_values: dict[str, Any]):
    found = forecast(parse_recipe(language_values, "test"))
    small, large = found.tiers
    # Two blocks, each expert with 2 * 4 * 20 numbers and a router row of 20.
    assert small.trainable_parameters == 2 * 2 * (2 * 4 * 20 + 20)
    assert large.trainable_parameters == 2 * 5 * (2 * 4 * 20 + 20)
    assert found.sums is None
    assert found.prefix_refused is None


def test_the_states_below_the_adapter_are_kept(language_values: dict[str, Any], run_language: RunLanguage):
    kept, computed = run_language(), run_language(engine={"prefix_cache": "off"})
    assert hasattr(compose(parse_recipe(language_values, "test")).train, "block")
    # Batches of other widths round otherwise, and training carries it on.
    assert kept.summary["perplexity"] == pytest.approx(computed.summary["perplexity"], rel=1e-4)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(run_language: RunLanguage):
    one, two = (run_language(engine={"workers": workers}) for workers in (1, 2))
    assert results(one.folder) == results(two.folder)
    assert len(results(one.folder)) > 3
    assert one.summary["perplexity_by_round"] == two.summary["perplexity_by_round"]


def test_the_rest_of_a_run_gives_the_bytes_of_the_whole(
    language_values: dict[str, Any], run_language: RunLanguage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "before the checkpoint", 1)
        with pytest.raises(Killed):
            run(parse_recipe(language_values, "test"), folder)
    resume(folder)
    assert results(folder) == results(run_language().folder)
    assert Finished(folder).summary["perplexity_by_round"] == run_language().summary["perplexity_by_round"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": {"kind": "averaged", "learning_rate": 1.0}}, ("no head", "remove the section `head`")),
        ({"head": {"kind": "closed-form"}}, ("no head", "remove the section `head`")),
        ({"method": "head-only"}, ("head-only", "language model", "choose another")),
        ({"data__prompt": "question"}, ("no column 'question'", "data.prompt")),
        ({"data__completion": None}, ("data.prompt and data.completion belong together",)),
        ({"data__chat_template": True}, ("has no chat template",)),
        ({"data": {"source": ".", "chat_template": True}}, ("data.chat_template", "data.prompt")),
        ({"data__max_length": 38}, ("data.max_length=38", "37 tokens")),
        ({"data__label": "topic"}, ("no column 'topic'",)),
        ({"partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": 5}}, ("no column 'label'", "data.label")),
        ({"evaluation__generate": {"examples": 3, "max_new_tokens": 30}}, ("max_new_tokens=30", "37 tokens")),
        ({"backbone__task": "sequence-classification"}, ("data.prompt is for language models", "causal-lm")),
    ],
)
def test_a_recipe_that_cannot_be_run(
    language_values: dict[str, Any], tmp_path: Path, cli: Cli, changes: dict[str, Any], words: tuple[str, ...]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(language_values, **changes)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 2
    assert not (tmp_path / "run").exists()
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_the_tokenizer_of_another_model_is_refused(
    language_values: dict[str, Any], tmp_path: Path, cli: Cli, task: str
):
    """Its tokens are beyond the vocabulary; the largest of them that the data has is "once", 11 of 17."""
    import transformers

    model, values = tmp_path / "model", changed(language_values, backbone__model=str(tmp_path / "model"))
    shutil.copytree(language_values["backbone"]["model"], model)
    settings: dict[str, Any] = {"vocab_size": 10, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**settings, intermediate_size=24, max_position_embeddings=37, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(model)
    if task != "causal-lm":
        values["backbone"]["task"] = task
        source = values["data"]["source"]
        values["data"] = {"source": source, "text": "prompt", "label": "kind", "max_length": 19, "validation": "off"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    outcome = cli("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    assert outcome.status == 2, outcome.err
    assert "gives token 11, but the vocabulary of the model ends with 9; name a model together" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_prompt_with_a_token_that_the_model_lacks_is_refused(
    language_values: dict[str, Any], tmp_path: Path, cli: Cli
):
    """The rows of the run had none."""
    model, values = tmp_path / "model", changed(language_values, backbone__model=str(tmp_path / "model"))
    shutil.copytree(language_values["backbone"]["model"], model)
    tokenizer: Any = load_tokenizer(str(model))
    tokenizer.add_tokens(["new-14", "new-15", "new-16", "new-17"])
    tokenizer.save_pretrained(model)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed(values, federation__rounds=1)))
    assert cli("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run").status == 0
    assert cli("predict", tmp_path / "run", "say new-16", "--max-new-tokens", 2).status == 0
    refused = cli("predict", tmp_path / "run", "say new-17", "--max-new-tokens", 2)
    assert_refused(refused, "gives token 17", "ends with 16")


def test_classification_takes_nothing_of_a_language_model(recipe_values: dict[str, Any]):
    for key, value in (("data__prompt", "text"), ("evaluation__generate", {"examples": 3, "max_new_tokens": 3})):
        more = {"data__completion": "label"} if key == "data__prompt" else {}
        with pytest.raises(InputError, match=f"{key.replace('__', '.')} is for language models"):
            parse_recipe(changed(recipe_values, **{key: value}, **more), "test")


def test_the_command_line_prints_the_perplexity(language_values: dict[str, Any], tmp_path: Path, cli: Cli):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(language_values, federation__rounds=1)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert re.search(r"round   1 .*perplexity \d", outcome.out)
    assert re.search(r"^perplexity \d+\.\d+ on the whole test set", outcome.out, re.MULTILINE)
    assert "accuracy" not in outcome.err + outcome.out


def test_methods_are_compared_by_perplexity_and_without_a_head(
    language_values: dict[str, Any], tmp_path: Path, cli: Cli
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(language_values, federation__rounds=1)))
    flags = ("--methods", "fft-moe,fedit", "--seeds", "1", "--workers", "1", "--output", tmp_path / "compared")
    outcome = cli("compare", path, *flags)
    assert outcome.status == 0, outcome.err
    for words in (r"\[2/2, .*\] fedit, .*: perplexity \d", r"fft-moe − fedit +[+-]\d", "below 0"):
        assert re.search(words, outcome.out), words
    assert "accuracy" not in outcome.err + outcome.out
    known = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert (known["metric"], *known["variants"]) == ("perplexity", "fft-moe", "fedit")
    (ours,) = known["variants"]["fft-moe"]["by_partition"].values()
    run(parse_recipe(changed(language_values, seed=0, federation__rounds=1), "test"), tmp_path / "alone")
    assert ours["mean"] == Finished(tmp_path / "alone").summary["perplexity"]
