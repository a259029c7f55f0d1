"""Defines what a rule of the defaults sees, and what a rule is.

A rule sees the values of a recipe before it is checked, and the facts of its data.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fftmoe.config.backbone import LANGUAGE_TASKS
from fftmoe.config.facts import Facts, read_facts
from fftmoe.methods.registry import METHODS, Capabilities

Values = Mapping[str, Any]
COLUMN_KEYS = tuple(
    f"data.{name}"
    for name in ("text", "image", "label", "prompt", "completion", "chosen", "rejected", "tokens", "tags")
)


@dataclass
class Known:
    """Holds the values of a recipe so far, by dotted keys, and the facts of its data, which are read when a rule needs
    them.

    Attributes:
        values: of the recipe; `fill_in` adds to them.
        may_read: whether the data may be read for a value. may_load: whether files of the model may.
        used_facts: whether facts have been looked up since it was last set to False.
    """

    values: dict[str, Any]
    may_read: bool
    may_load: bool = True
    used_facts: bool = False

    def get(self, key: str, otherwise: Any = None) -> Any:
        """Return the value of a key."""
        node: Any = self.values
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return otherwise
            node = node[part]
        return node

    def asks(self, key: str) -> bool:
        """Return whether the key has a value that switches something on; YAML reads a bare `off` as false."""
        return self.get(key) not in (None, False, "off")

    def lacks(self, key: str) -> bool:
        """Return whether the key is free: it has no value, and its section is absent or is a section."""
        section, _, name = key.rpartition(".")
        parent = self.get(section, {}) if section else self.values
        return isinstance(parent, dict) and name not in parent

    def put(self, key: str, value: Any) -> None:
        """Give a free key its value."""
        section, _, name = key.rpartition(".")
        (self.values.setdefault(section, {}) if section else self.values)[name] = copy.deepcopy(value)

    @property
    def method(self) -> Capabilities | None:
        """Return the capabilities of the recipe's method; None for a plug-in, or for a name that is wrong."""
        spec = METHODS.get(str(self.get("method")))
        return spec.capabilities if spec else None

    @property
    def task(self) -> str:
        """Return the recipe's task."""
        return str(self.get("backbone.task"))

    @property
    def is_language(self) -> bool:
        """Return whether the recipe's task is one of a language model."""
        return self.task in LANGUAGE_TASKS

    @property
    def noisy(self) -> bool:
        """Return whether the recipe asks for differential privacy."""
        return any(self.asks(f"privacy.{key}") for key in ("noise_multiplier", "epsilon", "examples"))

    @property
    def has_facts(self) -> bool:
        """Return whether the data has been read."""
        return self.__dict__.get("_read") is not None

    @property
    def facts_read(self) -> Facts | None:
        """Return the facts of the data if it has been read for another key; this does not read it."""
        return self.facts if self.has_facts else None

    @property
    def facts(self) -> Facts | None:
        """Return the facts of the data; None where no value may follow from it."""
        self.used_facts |= self._read is not None
        return self._read

    @cached_property
    def _read(self) -> Facts | None:
        source = self.get("data.source")
        if self.noisy or not self.may_read or not isinstance(source, str):
            return None
        named = {key: self.get(key) for key in COLUMN_KEYS if isinstance(self.get(key), str)}
        task, by, encoding = map(self._text, ("backbone.task", "partition.by", "data.encoding"))
        return read_facts(source, named, task, by, encoding, self._text("data.list_separator"))

    def _text(self, key: str) -> str | None:
        """Return the value of a key; None for one that is no text."""
        value = self.get(key)
        return value if isinstance(value, str) else None


LEFT_OUT = object()
"""What a rule gives where its key has no place in the recipe."""


@dataclass(frozen=True)
class Rule:
    """Says how a key gets its value where the recipe does not give it.

    Attributes:
        value: from what is known to the value, or to `LEFT_OUT`.
        says: the rule in words, for the reference; a constant needs none.
        of_data: the value may follow from the data, so that all cells of a comparison share it.
    """

    key: str
    value: Callable[[Known], Any]
    says: str = ""
    of_data: bool = True
