"""A recipe can come from another organisation, which can make it long: it is refused soon, in few words."""

import time

import pytest

from fftmoe.config import parse_recipe
from fftmoe.config.read import MOST_TOLD
from fftmoe.errors import InputError
from site_recipes import BASE, changed

MANY = 40_009


def test_of_very_many_errors_the_first_are_told():
    unknown = {f"key-{number}": 1 for number in range(MANY)}
    with pytest.raises(InputError) as refused:
        parse_recipe({**BASE, **unknown}, "that the server sent")
    words = str(refused.value)
    assert words.count("unknown key") == MOST_TOLD
    assert words.endswith(f"; and {MANY - MOST_TOLD} more")


def test_very_many_labels_are_compared_in_a_time_that_grows_with_their_number():
    """Comparing each with each would take half a minute."""
    labels = [f"label-{number}" for number in range(MANY)]
    began = time.process_time()
    assert parse_recipe(changed(BASE, {"data": {"labels": labels}}), "long").data.labels == labels
    with pytest.raises(InputError, match="two labels are called 'label-7'; name each once"):
        parse_recipe(changed(BASE, {"data": {"labels": [*labels, "label-7"]}}), "long")
    assert time.process_time() - began < 8.0
