"""Checks names in a recipe of parts that fftmoe does not ship: `plugin:NAME`."""

import re
from dataclasses import dataclass

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

PLUGIN_PREFIX = "plugin:"
_PLUGIN = re.compile(rf"{PLUGIN_PREFIX}[\w.-]{{1,100}}")


def is_plugin(name: str) -> bool:
    """Return whether a recipe's name is that of a plug-in."""
    return name.startswith(PLUGIN_PREFIX)


@dataclass(frozen=True)
class OwnOrPlugin:
    """Accepts one of these names, or `plugin:NAME`. Which plug-ins exist is known only where the recipe is run."""

    names: tuple[str, ...]

    def __call__(self, value: str) -> str:
        """Return the value, checked."""
        if value not in self.names and not _PLUGIN.fullmatch(value):
            expected = ", ".join(f"'{name}'" for name in self.names)
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value


def own_or_plugin(*names: str) -> AfterValidator:
    """Accept what `OwnOrPlugin` accepts."""
    return AfterValidator(OwnOrPlugin(names))
