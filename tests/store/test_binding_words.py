"""What a person reads of a run that is not what it was, and a file of bindings that is not one."""

import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.adapter.bound import BOUND
from fftmoe.errors import InputError
from fftmoe.store.bindings import BINDINGS_FILE, Bindings, Change, differences, require_same

NAMES = [f"site-{number}" for number in range(9)]
WHOLE = {"format": 1, "values": {"labels": ["a"]}, "accepted": ["a change"]}


def words(name: str, then: Any, now: Any) -> str:
    (found,) = differences({name: then}, {name: now})
    return found.words


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}, "a.b was 1 and is now 3"),
        ({"a": [1, 2, 3]}, {"a": [1, 5, 3]}, "a.1 was 2 and is now 5"),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, "a was [1, 2] and is now [1, 2, 3]"),
        ({"a": 1}, {}, "a was 1 and is now null"),
        ({"a": [1]}, {"a": "x"}, 'a was [1] and is now "x"'),
        ({"a": "x"}, {"a": [1]}, 'a was "x" and is now [1]'),
        ({"a": {"b": 1}}, {"a": 3}, 'a was {"b": 1} and is now 3'),
        ({"a": 3}, {"a": {"b": 1}}, 'a was 3 and is now {"b": 1}'),
        ({"a": "x" * 58}, {"a": 1}, f'a was "{"x" * 58}" and is now 1'),  # 60 characters with its marks
        ({"a": "x" * 59}, {"a": 1}, f'a was "{"x" * 56}… and is now 1'),
        (dict.fromkeys("abc", 1), dict.fromkeys("abc", 2), "; ".join(f"{key} was 1 and is now 2" for key in "abc")),
        (
            dict.fromkeys("abcde", 1),
            dict.fromkeys("abcde", 2),
            "a was 1 and is now 2; b was 1 and is now 2; c was 1 and is now 2; and 2 more keys",
        ),
    ],
)
def test_the_first_keys_that_differ_are_named_with_their_values(then: Any, now: Any, said: str):
    assert words("recipe", then, now) == f"the recipe has changed ({said})"
    assert words("arithmetic", then, now) == f"the numbers are computed in another way ({said})"


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("ab", "ba", "the labels are in another order (a, b then, b, a now)"),
        ("ab", "ac", "the labels are others (a, b then, a, c now)"),
        ("abcdef", "abcdeg", "the labels are others (a, b, c, d, e, f then, a, b, c, d, e, g now)"),
        ("abcdefg", "a", "the labels are others (a, b, c, d, e, f, … (7 in all) then, a now)"),
    ],
)
def test_the_first_labels_are_named(then: str, now: str, said: str):
    assert words("labels", list(then), list(now)) == said


def clients(*names: str) -> dict[str, Any]:
    return {"clients": len(names), "names": list(names)}


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"clients": 3}, {"clients": 5}, "3 then, 5 now"),
        (clients("a", "b"), {"clients": 5}, "2 then, 5 now"),
        ({"clients": 5}, clients("a", "b"), "5 then, 2 now"),
        (clients("a", "b"), clients("a", "b", "c"), "c has joined"),
        (clients("a", "b"), clients("a"), "b is missing"),
        (
            clients("a", "b", "c"),
            clients("a", "c", "b"),
            "b was client 1 and would be client 2, c was client 2 and would be client 1",
        ),
        (clients(*NAMES[:2]), clients(*NAMES[:5]), "site-2 has joined, site-3 has joined, site-4 has joined"),
        (
            clients(*NAMES[:2]),
            clients(*NAMES[:7]),
            "site-2 has joined, site-3 has joined, site-4 has joined, and 2 more changes",
        ),
    ],
)
def test_the_first_clients_that_differ_are_named(then: Any, now: Any, said: str):
    assert words("population", then, now) == f"the clients are others ({said})"


def test_rows_that_are_as_many_are_told_from_others():
    one, two = {"rows": 3, "sha256": "a"}, {"rows": 5, "sha256": "b"}
    assert words("training rows", one, two) == "the training rows have changed (3 rows then, 5 now)"
    same = {"rows": 3, "sha256": "b"}
    assert words("test rows", one, same) == (
        "the test rows have changed (as many as then, 3, but others, or in another order)"
    )


def test_a_site_that_is_new_or_gone_has_no_other_key():
    assert differences({"keys": {"a": "1", "b": "2"}}, {"keys": {"b": "2", "c": "3"}}) == []
    assert words("keys", {"a": "1", "b": "2"}, {"b": "4", "c": "3"}).startswith(
        "b has another key than at the beginning"
    )


def test_the_versions_that_differ_are_named():
    said = words("versions", {"torch": "1", "numpy": "2", "peft": "3"}, {"torch": "1", "numpy": "3", "more": "1"})
    assert said == "the versions of the software have changed (numpy 2 then, 3 now, peft 3 then, None now)"
    assert differences({"versions": {"torch": "1"}}, {"versions": {"torch": "1", "more": "1"}}) == []


VERSIONS, LABELS = Change("the versions have changed", True), Change("the labels are others", False)


@pytest.mark.parametrize(
    ("found", "accept", "said"),
    [
        ([VERSIONS], False, "{0}; start again, or continue with what is there now: --accept-changes"),
        ([VERSIONS], None, "{0}; start again"),
        ([LABELS], False, "{1}; start again"),
        ([LABELS], True, "{1}; start again"),
        ([LABELS], None, "{1}; start again"),
        ([VERSIONS, LABELS], False, "{0}; {1}; start again"),
        ([VERSIONS, LABELS], True, "{1}; start again"),
    ],
)
def test_a_difference_is_refused_unless_it_can_be_accepted_and_is(found: list[Change], accept: bool | None, said: str):
    with pytest.raises(InputError) as refused:
        require_same("the run cannot continue", found, accept, "start again")
    assert str(refused.value) == f"the run cannot continue: {said.format(VERSIONS.words, LABELS.words)}"


def test_what_is_accepted_is_returned_in_words():
    assert require_same("the run cannot continue", [VERSIONS], True, "start again") == (VERSIONS.words,)
    for accept in (True, False, None):
        assert require_same("the run cannot continue", [], accept, "start again") == ()


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A run with the records of two adapters."""
    for name in ("adapter", "adapter-last"):
        (tmp_path / name).mkdir()
        (tmp_path / name / BOUND).write_text(f'{{"of": "{name}"}}')
    return tmp_path


def test_the_adapters_of_a_run_are_those_that_it_has_saved(adapters: Path):
    bindings = Bindings({"labels": ["a"]}).with_adapters(adapters, ["adapter"])
    assert bindings.values["labels"] == ["a"]
    bindings.check_adapter(adapters / "adapter")
    bindings.check_adapter(adapters / "adapter-last")  # it is not recorded, as in a run of an older version
    (adapters / "adapter" / BOUND).write_text('{"of": "another"}')
    with pytest.raises(InputError, match=r"is not the one that this run has saved: bound\.json is missing or another"):
        bindings.check_adapter(adapters / "adapter")
    (adapters / "adapter" / BOUND).unlink()
    with pytest.raises(InputError, match="is not the one that this run has saved"):
        bindings.check_adapter(adapters / "adapter")
    Bindings({}).check_adapter(adapters / "adapter")


def test_a_record_of_adapters_that_is_none_is_damage(adapters: Path):
    for damaged in (7, ["adapter"], None):
        with pytest.raises(InputError, match=r"bindings\.json is damaged: its adapters are"):
            Bindings({"adapters": damaged}).check_adapter(adapters / "adapter")


def test_what_is_equal_or_only_one_side_knows_is_no_difference():
    assert differences({"labels": ["a"]}, {"labels": ["a"]}) == []
    assert differences({}, {"labels": ["a"]}) == []
    assert differences({"labels": ["a"]}, {}) == []


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("population", 7, {"clients": 2}),
        ("population", {"names": [["a"]]}, clients("a")),
        ("training rows", {"sha256": "a"}, {"rows": 3, "sha256": "b"}),
        ("labels", 7, ["a"]),
        ("versions", 7, {"torch": "3"}),
    ],
)
def test_a_value_of_another_form_is_damage(name: str, then: Any, now: Any):
    with pytest.raises(InputError, match=f"{BINDINGS_FILE} is damaged: its {name} cannot be compared"):
        differences({name: then}, {name: now})


def test_bindings_are_read_as_they_were_written(tmp_path: Path):
    assert Bindings.read(tmp_path) is None
    Bindings({"labels": ["a"]}, ("a change",)).write(tmp_path)
    assert Bindings.read(tmp_path) == Bindings({"labels": ["a"]}, ("a change",))
    assert json.loads((tmp_path / BINDINGS_FILE).read_text()) == WHOLE


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"format": None}, {"values": ["a"]}, {"values": None}, {"accepted": {"a": 1}}, {"accepted": "a"}],
)
def test_a_file_of_another_form_is_damaged(tmp_path: Path, change: dict[str, Any]):
    (tmp_path / BINDINGS_FILE).write_text(json.dumps({**WHOLE, **change}))
    with pytest.raises(InputError, match="it has not the form of format 1"):
        Bindings.read(tmp_path)


@pytest.mark.parametrize("missing", WHOLE)
def test_a_file_that_lacks_a_part_is_damaged(tmp_path: Path, missing: str):
    (tmp_path / BINDINGS_FILE).write_text(json.dumps({name: value for name, value in WHOLE.items() if name != missing}))
    with pytest.raises(InputError, match="is damaged"):
        Bindings.read(tmp_path)
