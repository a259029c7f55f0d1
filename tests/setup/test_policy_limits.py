"""What a site's policy may say about its budget of privacy, and what a recipe may ask under it."""

from dataclasses import replace
from typing import Any

import pytest

from fftmoe.errors import InputError
from fftmoe.setup.consent import label_objection, objections
from fftmoe.setup.policy import SitePolicy, parse_policy
from fftmoe.setup.site_request import SiteRequest, request_in
from policies import policy_of
from site_recipes import MODES, recipe

HALF_A_BUDGET = {
    "an epsilon without a delta": ("{modes: [examples], epsilon: 8}", "add both"),
    "a delta without an epsilon": ("{modes: [clients], delta: 0.1}", "add both"),
    "an epsilon that nothing bounds": ("{modes: [sums], epsilon: 8}", "no epsilon bounds"),
    "a delta that nothing bounds": ("{modes: [none, clients], delta: 0.1}", "no epsilon bounds"),
    "a budget for nothing": ("{modes: [], epsilon: 8}", "no epsilon bounds"),
}


@pytest.mark.parametrize("kind", HALF_A_BUDGET)
def test_half_a_budget_is_no_policy(kind: str):
    """A door would count nothing under an epsilon without its delta."""
    privacy, words = HALF_A_BUDGET[kind]
    with pytest.raises(InputError, match=words):
        parse_policy(f"privacy: {privacy}\n".encode(), "here")


def test_a_whole_budget_is_one():
    rights = parse_policy(b"privacy: {modes: [examples, clients], epsilon: 8, delta: 0.1}\n", "here").privacy
    assert (rights.epsilon, rights.delta) == (8.0, 0.1)


def test_a_message_about_a_section_does_not_repeat_the_section():
    with pytest.raises(InputError) as refused:
        parse_policy(b"privacy: {modes: [sums], epsilon: 8}\n", "here")
    assert "value:" not in str(refused.value)


KEY = "federation.local_steps"
RULES = [
    ({"most": 5}, 5, True),
    ({"least": 5}, 5, True),
    ({"least": 3, "most": 7}, 5, True),
    ({"most": 4}, 5, False),
    ({"least": 6}, 5, False),
    ({}, 5, False),  # a range without ends
    ({"lest": 3}, 5, False),
    ({"least": 3, "mots": 7}, 5, False),
    ({"most": True}, 1, False),
    ({"most": "7"}, 5, False),
    ({"least": 0, "most": 1}, True, False),
    ({"least": "a", "most": "c"}, "b", False),
    ("any", 5, True),
    (5, 5, True),
    (5, 7, False),
    (True, True, True),
    (True, 1, False),  # in Python they are equal
    (1, True, False),
    ([3, 5], 5, True),
    ([3, 7], 5, False),
    ([], 5, False),
    (None, 5, False),
    (None, None, False),  # nothing is said about the key
]


def request(mode: str = "none", **changes: Any) -> SiteRequest:
    return replace(request_in(recipe(MODES[mode])), **changes)


def policy(**changes: Any) -> SitePolicy:
    return SitePolicy.model_validate(policy_of(*map(recipe, MODES.values()), **changes))


def reasons(policy: SitePolicy, request: SiteRequest) -> str:
    return "; ".join(objections(policy, request, own_model=False))


@pytest.mark.parametrize(("rule", "value", "allowed"), RULES, ids=str)
def test_a_field_allows_what_its_rule_says_and_nothing_else(rule: Any, value: Any, allowed: bool):
    asked = request(own=frozenset({KEY}), values={KEY: value})
    found = reasons(policy(recipes=[], fields={KEY: rule}), asked)
    assert found == "" if allowed else f"`fields` does not allow its {KEY}" in found


def test_a_recipe_at_all_defaults_is_not_approved_by_itself():
    assert "is not approved" in reasons(policy(recipes=[]), request(own=frozenset()))


def test_an_epsilon_must_be_stated_only_where_the_server_adds_the_noise_and_the_policy_counts():
    counted = policy(
        recipes=[], fields={"seed": 1}, privacy={"modes": ["clients", "examples"], "epsilon": 8, "delta": 0.1}
    )
    uncounted = policy(recipes=[], fields={"seed": 1}, privacy={"modes": ["none", "clients"]})
    for rights, mode, refused in (
        (counted, "clients", True),
        (uncounted, "clients", False),
        (counted, "examples", False),
    ):
        stated = request(mode)
        silent = replace(stated, own=frozenset(), privacy=replace(stated.privacy, epsilon=None))
        assert ("states no privacy.epsilon" in reasons(rights, silent)) == refused, mode


def test_names_of_columns_are_labels_that_need_no_approval():
    columns = request(labels=("age", "dose"), labels_in_rows=False)
    assert label_objection(policy(recipes=[]), columns, ("age", "dose")) is None
    assert label_objection(policy(recipes=[]), columns, ("dose", "age")) is not None
    in_rows = replace(columns, labels_in_rows=True)
    assert label_objection(policy(recipes=[]), in_rows, ("age", "dose")) is not None
    assert label_objection(policy(), in_rows, ("age", "dose")) is None


def test_an_objection_says_what_is_allowed():
    assert "`tasks` has profile, feature-sums" in reasons(policy(tasks=["profile", "feature-sums"]), request())
    assert "`tasks` has nothing" in reasons(policy(tasks=[]), request())


def test_what_a_policy_leaves_out_is_asked_for_where_it_matters():
    silent = policy(fewest_rows=None, fewest_rows_of_label=None)
    by_label = request(sums_by_label=("feature-sums",))
    assert reasons(silent, by_label).count("is not stated") == 2
    assert "`fewest_rows_of_label` is not stated" in reasons(silent, by_label)
    assert reasons(silent, request(sums_by_label=())) == "`fewest_rows` is not stated"
    assert reasons(policy(), by_label) == ""
