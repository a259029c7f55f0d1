"""What a language model reaches on each client's own rows before the rounds, alone and together, and what it writes."""

from typing import Any

import pytest

from fftmoe.cli.client_scores import client_score_lines, sample_lines
from fftmoe.setup.asked import evaluate_run
from finished import Finished
from run_fixtures import RunLanguage

OWN = {
    "partition": {"kind": "natural", "by": "author"},
    "federation__clients_per_round": 2,
    "evaluation": {
        "baselines": ["head_only", "alone"],
        "generate": {"examples": 17, "max_new_tokens": 3, "samples": 3},
    },
}


@pytest.fixture(scope="module")
def measured(run_language: RunLanguage) -> Finished:
    return run_language(**OWN)


def test_every_client_has_scores_of_all_three_models(measured: Finished):
    found = measured.summary["before_and_after"]
    assert list(found) == ["author-0", "author-1", "author-2"]
    for own in found.values():
        assert list(own) == ["before", "alone", "together"]
        for scores in own.values():
            assert {"perplexity", "exact_match", "rouge_l"} <= scores.keys()


def test_together_is_what_evaluate_says_of_the_adapter(measured: Finished):
    again, tiers = evaluate_run(measured.folder), measured.summary["clients"]["tier"]
    assert {"small", "large"} == set(tiers)
    for tier, (name, own) in zip(tiers, measured.summary["before_and_after"].items(), strict=True):
        # A client is measured at its own tier; the saved adapter, and what it writes, at the largest one.
        same = own["together"]["perplexity"] == round(again["perplexity_by_client"][name], 4)
        assert same == (tier == "large")
        assert own["together"]["rouge_l"] == round(again["generated_by_client"][name]["rouge_l"], 4)


def test_before_is_a_run_that_has_not_learned(run_language: RunLanguage, measured: Finished):
    still = run_language(**OWN, federation__learning_rate=1e-30)
    for name, own in still.summary["before_and_after"].items():
        assert own["before"] == measured.summary["before_and_after"][name]["before"]
        assert own["before"] == own["together"] == own["alone"]


def test_scores_are_the_same_for_two_workers(run_language: RunLanguage, measured: Finished):
    two = run_language(**OWN, engine__workers=2)
    assert two.summary["before_and_after"] == measured.summary["before_and_after"]
    assert two.summary["samples"] == measured.summary["samples"]


def test_samples_are_of_different_tasks_and_change(measured: Finished):
    samples = measured.summary["samples"]
    assert len(samples) == 3
    assert all(set(sample) == {"prompt", "completion", "before", "after"} for sample in samples)
    assert len({sample["prompt"] for sample in samples}) == 3


def test_the_table_has_a_row_for_each_client_and_the_samples_follow(measured: Finished):
    lines = client_score_lines(measured.summary)
    assert [line.split()[0] for line in lines[2:]] == ["client", "author-0", "author-1", "author-2"]
    assert lines[2].split()[1:4] == ["before", "alone", "together"]
    value = measured.summary["before_and_after"]["author-1"]["alone"]["perplexity"]
    assert f"{value:.3f}" in lines[4]
    assert sum(line.startswith("before ") for line in sample_lines(measured.summary)) == 3


def test_control_characters_and_long_texts_are_no_trouble():
    summary: dict[str, Any] = {
        "metric": "perplexity",
        "before_and_after": {"a\x1b[2J": {"before": {"perplexity": 3.0}, "together": {"perplexity": 2.0}}},
        "samples": [{"prompt": "x" * 500, "completion": "\x1b]0;", "before": "", "after": "a\nb"}],
    }
    text = "\n".join([*client_score_lines(summary), *sample_lines(summary)])
    assert "\x1b" not in text
    assert "alone" not in text
    assert max(map(len, text.splitlines())) < 130


def test_a_run_that_asks_for_no_text_has_none_of_this(run_language: RunLanguage):
    summary = run_language(partition=OWN["partition"], federation__clients_per_round=2).summary
    assert "before_and_after" not in summary
    assert "samples" not in summary
    assert client_score_lines(summary) == sample_lines(summary) == []
