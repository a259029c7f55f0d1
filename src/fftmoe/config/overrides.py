"""`--set a.b=c`: a dotted key and a YAML value, put into a recipe's nested sections."""

import copy
from collections.abc import Iterable
from typing import Any

from fftmoe.errors import InputError, did_you_mean
from fftmoe.strict import strict_yaml


def parse_override(text: str) -> tuple[str, Any]:
    """`a.b=c` as its dotted key and its value, which is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r} is not of the form section.key=value, e.g. --set federation.rounds=5")
    try:
        return key, strict_yaml(value)
    except ValueError as error:
        raise InputError(f"--set {text!r}: the value is not YAML: {error}") from error


def apply_override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings; a list's items are reached by index or by their `name`."""
    *parents, last = key.split(".")
    node: Any = values
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(part, {})
        elif part in (items := _items(node)):
            node = items[part]
        else:
            raise _no_place(key, value, depth, items)
    if not isinstance(node, dict):
        raise _no_place(key, value, len(parents))
    node[last] = copy.deepcopy(value)


def _items(node: Any) -> dict[str, Any]:
    """A list's items by their index and by their `name`; what is no list has none."""
    items = {str(index): item for index, item in enumerate(node)} if isinstance(node, list) else {}
    return items | {str(item["name"]): item for item in items.values() if isinstance(item, dict) and "name" in item}


def _no_place(key: str, value: Any, depth: int, names: Iterable[str] = ()) -> InputError:
    """What is at the first `depth` parts of `key` has nothing that the next part could name, only `names`."""
    parts = key.split(".")
    remedy = did_you_mean(parts[depth], names) if names else ""
    return InputError(
        f"the override {key}={value} has no place: {'.'.join(parts[:depth])} is no section of the recipe "
        f"and has no {parts[depth]!r}{remedy}"
    )
