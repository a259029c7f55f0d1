"""Reads what a comparison compares: the `compare:` section of a recipe, and what the caller says instead."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict, get_args

from pydantic import Field, ValidationError

from fftmoe.config import HeadSection, Section
from fftmoe.config.fields import Positive
from fftmoe.config.plugins import is_plugin
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.registry import METHODS


class Choices(Section):
    """Holds the optional `compare:` section of a recipe file.

    `overrides` holds values by dotted keys for `+head` (every method with that head), for `method`, and for
    `method+head`; they apply in this order. `variants` holds values by dotted keys for each label: every method and
    head runs as the recipe says, and once more with the values of each variant.
    """

    methods: list[str] | None = None
    heads: list[str] | None = None
    partitions: list[str] | None = None
    seeds: int | list[int] = 3
    target: Positive | None = None
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Flags(TypedDict, total=False):
    """States what to compare, as a caller says it; None is taken from the `compare:` section, or else from the recipe
    itself.

    Attributes:
        methods: the methods; each is combined with each head, and `method+head` gives a method its own head.
        heads: the kinds of head.
        partitions: `iid`, `dirichlet:0.1`, `shards:2`, `bernoulli-dirichlet:0.3:0.5`, `natural:column`.
        seeds: the number of seeds, counted from 0, or the seeds themselves; 3 if nothing says it.
        target: the value of the task's metric whose cost is shown; by default the final value of fedit.
        changes: values by dotted keys for each label; every method and head also runs with these (`Choices.variants`).
    """

    methods: Sequence[str] | None
    heads: Sequence[str] | None
    partitions: Sequence[str] | None
    seeds: int | Sequence[int] | None
    target: float | None
    changes: Mapping[str, Mapping[str, Any]] | None


def read_choices(section: Any, flags: Mapping[str, Any], where: str) -> Choices:
    """Return the choices of a `compare:` section after the caller's `Flags`; `where` names the recipe in messages."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        raise InputError(f"recipe {where}: compare is {section!r}; it must be a section of keys, e.g. seeds: 3")
    try:
        given = {
            key: list(value) if isinstance(value, tuple | range) else value
            for key, value in flags.items()
            if value is not None
        }
        if (changes := given.pop("changes", None)) is not None:
            given["variants"] = changes
        return Choices.model_validate({**section, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            near = did_you_mean(key, Choices.model_fields)
            raise InputError(f"recipe {where}: unknown key 'compare.{key}'{near}") from None
        raise InputError(
            f"recipe {where}: compare.{key}: {first['msg']} (value: {first['input']!r}); correct it"
        ) from None


def check_override_keys(overrides: Mapping[str, Any]) -> None:
    """Refuse overrides for a method or a head that does not exist."""
    for key in overrides:
        method, plus, head = key.partition("+")
        if method or not plus:
            _check_known(key, "method", method, METHODS)
        if plus:
            _check_known(key, "head", head, get_args(HeadSection.model_fields["kind"].annotation))


def _check_known(key: str, what: str, name: str, valid: Collection[str]) -> None:
    if name not in valid and not is_plugin(name):
        raise InputError(f"compare.overrides: the key {key!r} names the {what} {name!r}{did_you_mean(name, valid)}")
