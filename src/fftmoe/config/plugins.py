"""Names in a recipe for parts that fftmoe does not ship: `plugin:NAME`."""

import re

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

PLUGIN_PREFIX = "plugin:"
_PLUGIN = re.compile(rf"{PLUGIN_PREFIX}[\w.-]{{1,100}}")


def is_plugin(name: str) -> bool:
    """Whether a recipe's name is that of a plug-in."""
    return name.startswith(PLUGIN_PREFIX)


def own_or_plugin(*names: str) -> AfterValidator:
    """Accepts one of these names, or `plugin:NAME`. Which plug-ins exist is known only where the recipe is run."""

    def check(value: str) -> str:
        if value not in names and not _PLUGIN.fullmatch(value):
            raise PydanticCustomError(
                "literal_error", "Input should be {expected}", {"expected": ", ".join(f"'{name}'" for name in names)}
            )
        return value

    return AfterValidator(check)
