"""Applies overrides to a recipe, `--set a.b=c`: a dotted key and a YAML value."""

import copy
from collections.abc import Iterable
from typing import Any

from fftmoe.errors import InputError, did_you_mean
from fftmoe.shown import shown_on_a_line
from fftmoe.strict import strict_yaml


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=c` into its dotted key and its value, which is YAML.

    Raises:
        InputError: it has no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r} is not of the form section.key=value, e.g. --set federation.rounds=5")
    try:
        return key, strict_yaml(value)
    except ValueError as error:
        raise InputError(f"--set {text!r}: the value is not YAML: {error}; put it in quotes") from error


def apply_override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings; items of a list are reached by index or by their `name`.

    Raises:
        InputError: no section, and no item of a list, has the name that the key needs.
    """
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        elif part in (items := _items(node)):
            node = items[part]
        else:
            raise _not_found(key, value, depth, items)
    if not isinstance(node, dict):
        raise _not_found(key, value, len(parents))
    node[last] = copy.deepcopy(value)


def _items(node: Any) -> dict[str, Any]:
    """Return the items of a list by their index and by their `name`; empty for a value that is not a list."""
    items = {str(index): item for index, item in enumerate(node)} if isinstance(node, list) else {}
    return items | {str(item["name"]): item for item in items.values() if isinstance(item, dict) and "name" in item}


def _not_found(key: str, value: Any, depth: int, names: Iterable[str] = ()) -> InputError:
    """Return the error for a key whose first `depth` parts lead to a value without the next part;
    `names` are valid there.
    """
    parts = key.split(".")
    remedy = did_you_mean(parts[depth], names) if names else ""
    return InputError(
        shown_on_a_line(
            f"the override {key}={value} cannot be set: {'.'.join(parts[:depth])} is not a section of the recipe "
            f"and has no {parts[depth]!r}{remedy}"
        )
    )
