"""Completes what a recipe leaves out: a default for every key but `data.source`.

`fill_in` works on the values of a recipe before they are checked, so that a checked recipe is whole and every run
folder says what it was made with. The defaults themselves are in `default_rules.py`.

The defaults in the schema are not these: they are what a key means that the file of an older run does not have.
`benchmarks/defaults.py` compares the defaults with others, one at a time; docs/LOG.md says where they come from.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fftmoe.config.default_rules import PAPER, RULES
from fftmoe.config.known import LEFT_OUT, Known

if TYPE_CHECKING:
    from fftmoe.data.sources import ReadAhead


@dataclass(frozen=True)
class Filled:
    """Holds the whole values of a recipe.

    Attributes:
        from_data: by dotted key, those that a rule took from the facts of the data.
        shared: by dotted key, those that follow from the data and from values that do, which all cells of a comparison
            share; empty where the data was not read.
        read_ahead: what was read of the data; None if nothing was.
    """

    values: dict[str, Any]
    from_data: dict[str, Any]
    shared: dict[str, Any]
    read_ahead: "ReadAhead | None"


def fill_in(values: Mapping[str, Any], may_read: bool = True, may_load: bool = True) -> Filled:
    """Give every key that a recipe leaves out its default.

    Args:
        values: of a recipe, unchecked; wrong ones stay as they are.
        may_read: whether the data may be read for a value. may_load: whether files of the model may.

    Raises:
        InputError: the data has to be read for a value, and cannot be.
    """
    known, from_data, shared = Known(_without_words(values), may_read, may_load), {}, {}
    for rule in RULES:
        if not known.lacks(rule.key):
            continue
        known.used_facts = False
        value = rule.value(known)
        if value is not LEFT_OUT:
            known.put(rule.key, value)
            from_data |= {rule.key: value} if known.used_facts and rule.of_data else {}
            shared |= {rule.key: value} if rule.says and rule.of_data else {}
    if known.facts_read is None:
        return Filled(known.values, from_data, {}, None)
    return Filled(known.values, from_data, shared, known.facts_read.read_ahead)


def _without_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with `adapter: paper` written out."""
    written = copy.deepcopy(dict(values))
    if written.get("adapter") == "paper":
        written["adapter"] = {}
        for section, own in PAPER.items():
            given = written.get(section, {})
            written[section] = {**own, **given} if isinstance(given, dict) else given
    return written
