"""No site's word about itself ends a run, reaches the terminal raw, or changes what the site said before."""

import json
import re
from collections.abc import Callable
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.deploy import gather as roll_call
from fftmoe.deploy.gather import Gathered, RollCall, gather
from fftmoe.engines.flower import Unreadable
from fftmoe.engines.flower_messages import MOST_PROFILE, PROFILE_RECORD, unpack_profile
from fftmoe.report.progress import Progress
from profiles import CONTRADICTIONS, GOOD, KNOWN, NODES, SITES, WRONG, Connected, gathered


@pytest.fixture
def ask_sites(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Gathered | str, str]]:
    return lambda answers, known=None: gathered(monkeypatch, answers, known)


Ask = Callable[..., tuple[Gathered | str, str]]


@pytest.mark.parametrize("name", WRONG)
def test_a_site_whose_profile_cannot_be_true_is_left_out_and_the_run_goes_on(ask_sites: Ask, name: str):
    found, shown = ask_sites({**GOOD, "b": WRONG[name]})
    assert isinstance(found, Gathered)
    assert [*found.profiles] == ["a", "c"]
    assert [*found.excluded] == ["b"]
    assert shown.count("site b cannot join: ") == 1  # not at every look
    assert "".join(shown.split("\n")).isprintable()
    assert len(shown) < 2000


def test_a_site_whose_answer_cannot_be_read_is_left_out_like_one_whose_profile_cannot_be_true(ask_sites: Ask):
    """A site that refuses is waited for, because its operator can approve; one that sends garbage ends no run."""
    found, shown = ask_sites({**GOOD, "b": Unreadable("its answer cannot be read (ValueError)")})
    assert isinstance(found, Gathered)
    assert ([*found.profiles], found.excluded) == (["a", "c"], {"b": "its answer cannot be read (ValueError)"})
    assert shown.count("site b cannot join: its answer cannot be read (ValueError)") == 1


def test_a_site_that_is_mended_in_time_takes_part(monkeypatch: pytest.MonkeyPatch):
    """Site b first says what cannot be true, then refuses, then is well."""
    said = iter([WRONG["no rows"], "its data does not fit the recipe (code data)", GOOD["b"]])

    def ask(grid: Grid, nodes: list[int], job: Any, seconds: float) -> dict[int, Any]:
        answers = {NODES["a"]: GOOD["a"], NODES["b"]: next(said), NODES["c"]: GOOD["c"]}
        return {node: answers[node] for node in nodes}

    monkeypatch.setattr(roll_call, "ask", ask)
    monkeypatch.setattr(roll_call, "CONNECTED_POLL_SECONDS", 0.0)
    call = RollCall(cast(Grid, Connected()), NODES, SITES, {}, ("small",), {}, Progress.silent())
    found = gather(call, 40.0)
    assert [*found.profiles] == ["a", "b", "c"]
    assert (found.excluded, call.refused, call.invalid) == ({}, {}, {})


def test_a_site_that_is_missing_or_refuses_ends_a_new_run_but_not_an_interrupted_one(ask_sites: Ask):
    refusing = {**GOOD, "b": "its own policy does not allow what it was asked (code policy)"}
    missing = {site: GOOD[site] for site in ("a", "c")}
    for answers, reason in ((refusing, "b: its own policy"), (missing, "b: it did not connect")):
        found, _ = ask_sites(answers)
        assert isinstance(found, str)
        assert reason in found
        found, _ = ask_sites(answers, KNOWN)
        assert isinstance(found, Gathered)
        assert found.profiles == KNOWN


def test_the_terminal_says_why_a_site_refuses(ask_sites: Ask):
    _, shown = ask_sites({**GOOD, "b": "its own policy does not allow what it was asked (code policy)"})
    assert "site b cannot join: its own policy does not allow" in shown


def test_sites_that_say_the_same_as_when_the_run_began_are_here(ask_sites: Ask):
    found, shown = ask_sites(GOOD, KNOWN)
    assert isinstance(found, Gathered)
    assert shown.count("is here: budget small") == 3
    assert "cannot join" not in shown


def test_only_connected_sites_are_asked_and_the_server_waits_between_two_looks(monkeypatch: pytest.MonkeyPatch):
    """Site c connects after the first look."""
    connected, done = iter([["a", "b"], ["a", "b", "c"]]), list[Any]()

    class Joining:
        def get_node_ids(self) -> list[int]:
            return [NODES[site] for site in next(connected)]

    def ask(grid: Grid, nodes: list[int], job: Any, seconds: float) -> dict[int, Any]:
        done.append(nodes)
        return {node: next(GOOD[site] for site in SITES if NODES[site] == node) for node in nodes}

    monkeypatch.setattr(roll_call, "ask", ask)
    monkeypatch.setattr(roll_call.time, "sleep", done.append)
    call = RollCall(cast(Grid, Joining()), NODES, SITES, {}, ("small",), {}, Progress.silent())
    assert [*gather(call, 40.0).profiles] == ["a", "b", "c"]
    assert done == [[NODES["a"], NODES["b"]], roll_call.CONNECTED_POLL_SECONDS, [NODES["c"]]]


def test_without_any_site_there_is_no_run(ask_sites: Ask):
    found, _ = ask_sites({site: {} for site in SITES})
    assert isinstance(found, str)
    assert found.count("described itself as") == 3


@pytest.mark.parametrize("change", CONTRADICTIONS.values())
def test_what_a_site_said_when_the_run_began_stays(ask_sites: Ask, change: dict[str, Any]):
    found, shown = ask_sites({**GOOD, "b": {**GOOD["b"], **change}}, KNOWN)
    assert isinstance(found, Gathered)
    assert found.profiles == KNOWN
    assert re.search("site b cannot join: it says .* but said 6 examples, budget 'small'", shown)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.sampled_from([*GOOD["a"], "x"]), own, max_size=6),
    max_leaves=9,
)


@given(JSON.filter(lambda value: not isinstance(value, str)))
def test_no_json_value_ends_a_run_or_reaches_the_terminal_raw(value: Any):
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, shown = gathered(monkeypatch, {**GOOD, "b": value})
    assert isinstance(found, Gathered)
    assert found.excluded.keys() | found.profiles.keys() == SITES.keys()
    assert shown.replace("\n", "").isprintable()
    assert len(shown) < 2000


def test_a_profile_of_many_characters_is_not_even_parsed():
    def content(padding: int) -> RecordDict:
        return RecordDict({PROFILE_RECORD: ConfigRecord({"json": json.dumps({"site": "a" * padding})})})

    assert unpack_profile(content(1000)) == {"site": "a" * 1000}
    with pytest.raises(ValueError, match=f"at most {MOST_PROFILE:,} are read"):
        unpack_profile(content(MOST_PROFILE))
