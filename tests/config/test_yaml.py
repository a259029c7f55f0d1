"""YAML is read by libyaml and by PyYAML's own parser alike, and written so that both read the same."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.strict import strict_yaml, yaml_text

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=13)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3)
)
ALMOST = st.text(alphabet=st.sampled_from("ab1:-[]{}#&*!|>'\"\\ \t\n,.é\x00"), max_size=23)


def said(text: str) -> Any:
    try:
        return repr(strict_yaml(text))
    except ValueError as error:
        return str(error)


def without_libyaml(text: str) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(yaml, "__with_libyaml__", False)
        return said(text)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(value: Any):
    text = yaml_text(value)
    assert said(text) == without_libyaml(text) == repr(value)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(yaml, "__with_libyaml__", False)
        assert said(yaml_text(value)) == repr(value)


@given(ALMOST)
@settings(max_examples=200, deadline=None)
def test_what_one_parser_refuses_is_refused_in_the_others_words(text: str):
    """libyaml takes a few texts that PyYAML refuses; what it refuses, PyYAML words, or takes."""
    found, expected = said(text), without_libyaml(text)
    try:
        yaml.compose(text, yaml.CSafeLoader)
    except yaml.YAMLError:
        assert found == expected
