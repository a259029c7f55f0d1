"""Names are texts with one spelling and one order, and near-equal ones are pointed out and never merged."""

import string
import unicodedata
from datetime import date, datetime, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data.names import distinct_names, is_blank, name_of, near_equal, near_equal_notes, sorted_names

WORDS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=5)


@given(st.sets(st.integers(-99, 999), min_size=1))
def test_whole_numbers_are_ordered_by_value(numbers: set[int]):
    assert sorted_names(map(str, numbers)) == list(map(str, sorted(numbers)))


@given(st.sets(st.integers(0, 99), min_size=1), st.sampled_from(["01", "1.0", "a", "-0", "+1", " 1", "١", ""]))
def test_one_name_that_is_no_plain_number_makes_all_of_them_texts(numbers: set[int], other: str):
    names = [*map(str, numbers), other]
    assert sorted_names(names) == sorted(names)


CHANGES = {
    "a blank behind": lambda name: name + " ",
    "a blank in front": lambda name: "\u00a0" + name,
    "capitals": str.upper,
    "wide letters": lambda name: "".join(chr(ord(letter) + 0xFEE0) for letter in name),
    "an invisible letter": lambda name: name[:1] + "\u200b" + name[1:],
    "a mark of direction": lambda name: name + "\u200f",
    "a tab": lambda name: name + "\t",
}


@pytest.mark.parametrize("change", CHANGES)
@given(name=WORDS.filter(lambda name: name != name.upper()), others=st.sets(WORDS))
def test_names_that_look_alike_are_found(change: str, name: str, others: set[str]):
    others -= {name}
    changed = CHANGES[change](name)
    assert near_equal([*others, name, changed, name]) == [tuple(sorted((name, changed)))]
    assert near_equal([*others, name, name]) == []
    (note,) = near_equal_notes("labels", [name, changed])
    assert note.startswith("labels that differ only in blanks, case or the form of characters count as different: ")
    assert repr(name) in note


def test_forms_of_unicode_are_one():
    names = ["Café", unicodedata.normalize("NFD", "Café"), "CAFÉ", "Straße", "STRASSE", "ﬁne", "fine", "Café noir"]
    assert near_equal(names) == [tuple(sorted(names[:3])), tuple(sorted(names[3:5])), tuple(sorted(names[5:7]))]


def test_a_note_stays_short():
    (note,) = near_equal_notes("clients", [name + blank for name in "abcdefg" for blank in ("", " ")])
    assert note.count(" and ") == 4
    assert "; and 4 more such groups; " in note
    assert near_equal_notes("clients", ["a", "b"]) == ()
    (note,) = near_equal_notes("clients", [name + blank for name in "abc" for blank in ("", " ")])
    assert note.count(" and ") == 3
    assert "more such groups" not in note


def test_a_name_that_is_there_twice_is_refused_and_empty_ones_are_not():
    distinct_names(["a", "", "A", ""], "columns")
    with pytest.raises(ValueError, match=r"^it has two columns named 'a'; give each its own name$"):
        distinct_names(["a", "b", "a"], "columns")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, None),
        ("", ""),
        (" 01", " 01"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (date(2020, 12, 31), "2020-12-31"),
    ],
)
def test_a_value_of_a_file_has_one_spelling(value: Any, name: str | None):
    assert name_of(value) == name


@pytest.mark.parametrize("value", [1.0, datetime(2020, 12, 31), time(1), b"a", ["a"], {"a": 1}])
def test_a_value_with_many_spellings_is_no_name(value: Any):
    with pytest.raises(TypeError, match=f"^{type(value).__name__} values such as "):
        name_of(value)


def test_white_space_is_blank():
    assert [is_blank(text) for text in (None, "", " \t", "\u3000", "a", " a ")] == [True] * 4 + [False] * 2
