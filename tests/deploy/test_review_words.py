"""What a review says that a recipe asks of a site, in every mode; and what the first policy then grants."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fftmoe.deploy.review import approve, describe_request, first_policy
from fftmoe.errors import InputError
from fftmoe.setup.policy import parse_policy
from fftmoe.setup.site_request import EVALUATION, PROFILE, SUMS, TRAINING, PrivacyAsked, SiteRequest, request_in
from site_recipes import MODES, recipe

SUMMED, MEASURED = "feature statistics summed over its rows", "how well the model answers the rows it sets aside"
COUNTED = "and counted for each label"


def request(mode: str = "none", **changes: Any) -> SiteRequest:
    return replace(request_in(recipe(MODES[mode])), **changes)


def line(asked: SiteRequest, name: str) -> str:
    """The line of the description that begins with this word."""
    [found] = [text for text in describe_request(asked) if text.strip().startswith(name)]
    return found


@pytest.mark.parametrize(
    ("tasks", "by_label", "said"),
    [
        ((PROFILE, TRAINING), (), ()),
        ((TRAINING, SUMS), (SUMS,), (SUMMED,)),
        ((TRAINING, EVALUATION), (), (MEASURED,)),
        ((TRAINING, EVALUATION), (EVALUATION,), (MEASURED, COUNTED)),
        ((TRAINING, SUMS, EVALUATION), (SUMS,), (SUMMED, MEASURED)),
    ],
)
def test_what_a_site_would_send_is_what_the_tasks_need(
    tasks: tuple[str, ...], by_label: tuple[str, ...], said: tuple[str, ...]
):
    words = line(request(tasks=tasks, sums_by_label=by_label), "sends")
    assert {part for part in (SUMMED, MEASURED, COUNTED) if part in words} == set(said)


@pytest.mark.parametrize("mode", MODES)
def test_losses_and_tokens_are_sent_only_without_privacy(mode: str):
    assert ("how many tokens each expert got, its loss" in line(request(mode), "sends")) == (mode == "none")


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (PrivacyAsked("none"), ""),
        (PrivacyAsked("clients", 3.0, 0.001), " (epsilon 3, delta 0.001)"),
        (PrivacyAsked("clients", None, 0.001), " (delta 0.001)"),
        (
            PrivacyAsked("examples", 7.0, 0.001, 2.0, 8, 4),
            " (epsilon 7, delta 0.001; noise 2 in each of 4 steps a round)",
        ),
    ],
)
def test_a_promise_comes_with_its_numbers(asked: PrivacyAsked, shown: str):
    words = line(request(privacy=asked), "privacy")
    assert words.endswith(shown)
    assert ("noise 2" in words, "delta" in words) == ("noise" in shown, "delta" in shown)


@pytest.mark.parametrize(
    ("labels", "shown"),
    [(None, "labels    not stated, so the server chooses"), ((), "labels    none"), (("a", "b"), "labels    'a', 'b'")],
)
def test_labels_are_listed_or_said_to_be_the_servers_choice(labels: tuple[str, ...] | None, shown: str):
    assert shown in line(request(labels=labels), "labels")


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_folder_is_said_to_be_the_sites_own(is_folder: bool):
    assert ("start the site with --model" in line(request(is_folder=is_folder), "backbone")) == is_folder


@pytest.mark.parametrize(
    ("mode", "sends_counts", "named"),
    [("none", True, True), ("none", False, False), ("sums", False, False), ("examples", False, True)],
)
def test_a_first_policy_names_counts_where_an_answer_or_the_noise_needs_them(
    mode: str, sends_counts: bool, named: bool
):
    text = first_policy(request(mode, sends_counts=sends_counts), None)
    assert parse_policy(text.encode(), "here").name_counts == named


@pytest.mark.parametrize(("epsilon", "delta"), [(None, 0.001), (7.0, None), (None, None)])
def test_a_first_policy_grants_no_half_of_a_budget(epsilon: float | None, delta: float | None):
    asked = PrivacyAsked("examples", epsilon, delta, 2.0, 8, 4)
    with pytest.raises(InputError, match="states no epsilon that its rounds stay within"):
        first_policy(request("examples", privacy=asked), None)


def test_an_approval_says_whether_it_began_a_ledger(tmp_path: Path):
    assert "began the site's ledger" in approve(tmp_path, request(), None)
    (tmp_path / "policy.yaml").unlink()
    assert "kept the site's ledger" in approve(tmp_path, request(), None)
