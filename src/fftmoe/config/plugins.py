"""Names in a recipe of parts that are not fftmoe's own: `plugin:NAME`."""

import re
from typing import TYPE_CHECKING

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from fftmoe.config.robustness import METHODS as MERGED_BY_A_MEAN

if TYPE_CHECKING:
    from fftmoe.config.schema import Recipe

PREFIX = "plugin:"
_PLUGIN = re.compile(rf"{PREFIX}[\w.-]{{1,100}}")


def is_plugin(name: str) -> bool:
    """Whether a recipe's name is that of a plug-in."""
    return name.startswith(PREFIX)


def own_or_plugin(*names: str) -> AfterValidator:
    """One of these names, or `plugin:NAME`; which plug-ins there are is known where the recipe is run."""

    def check(value: str) -> str:
        if value not in names and not _PLUGIN.fullmatch(value):
            raise PydanticCustomError(
                "literal_error", "Input should be {expected}", {"expected": ", ".join(f"'{name}'" for name in names)}
            )
        return value

    return AfterValidator(check)


def check_plugins(recipe: "Recipe") -> None:
    """Whether the recipe asks of plug-ins only what holds for any of them.

    Raises:
        ValueError: it does not; the message says what to change.
    """
    aggregation, method = recipe.federation.aggregation, recipe.method
    used = [name for name in (method, aggregation) if is_plugin(name)]
    if used and recipe.privacy is not None:
        raise ValueError(
            f"what privacy promises holds for fftmoe's own methods and aggregations, and {used[0]} is none of them; "
            "leave privacy out, or use another"
        )
    if is_plugin(aggregation) and method not in MERGED_BY_A_MEAN and not is_plugin(method):
        raise ValueError(
            f"method {method} has a merge of its own (or none), so federation.aggregation={aggregation} has no place; "
            f"use one of {', '.join(MERGED_BY_A_MEAN)}, or another aggregation"
        )
