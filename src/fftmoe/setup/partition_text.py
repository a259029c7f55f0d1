"""Reads partitions written as text, such as `dirichlet:0.1`, on the command line or in a `compare` section."""

from collections.abc import Mapping
from typing import Any

from fftmoe.config.partition import PartitionSection
from fftmoe.config.plugins import is_plugin
from fftmoe.data.partition import KINDS
from fftmoe.errors import InputError, did_you_mean
from fftmoe.strict import strict_yaml

# For each kind, the keys of a recipe's partition section in the order of the text `kind:value:value`.
PARTITION_KEYS = {
    kind: tuple("by" if name == "groups" else name for name in made.parameters) for kind, made in KINDS.items()
}


def partition_label(section: PartitionSection) -> str:
    """Return the text that stands for a partition section: `dirichlet:0.1`, or `plugin:NAME` for a plug-in."""
    values = [getattr(section, name) for name in PARTITION_KEYS.get(section.kind, ())]
    return ":".join([section.kind, *map(str, values)])


def partition_section(text: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the partition section that a text such as `dirichlet:0.1` stands for; `base` gives the other keys.

    `natural` alone stands for the recipe's own partition, if that is natural.

    Raises:
        InputError: the kind or its parameters are wrong, or the number of clients is missing.
    """
    kind, *given = [text] if is_plugin(text) else text.split(":")
    if not is_plugin(kind) and kind not in KINDS:
        raise InputError(f"partition {text!r}: {kind!r} is not known{did_you_mean(kind, KINDS)}")
    names = PARTITION_KEYS.get(kind, ())
    if text == base.get("kind") == "natural" and base.get("by"):
        given = [str(base["by"])]
    if len(given) != len(names) or not all(given):
        wanted = " and ".join(names) or "no value"
        raise InputError(f"partition {text!r}: {kind} takes {wanted}; write it like {KINDS[kind].example}")
    kept = ("min_examples",) if kind == "natural" else ("num_clients", "min_examples")
    section = {"kind": kind, **{key: base[key] for key in kept if key in base}}
    if kind != "natural" and section.get("num_clients") is None:
        raise InputError(f"partition {text!r} needs a number of clients; add partition.num_clients to the recipe")
    parameters = {name: value if name == "by" else _value(value) for name, value in zip(names, given, strict=True)}
    return section | parameters


def _value(text: str) -> Any:
    """Read a number as YAML does; the validation of the recipe refuses other values."""
    try:
        return strict_yaml(text)
    except ValueError:
        return text
