"""Recipes for tests of whole runs: one of five clients with every method and every kind of head, and changes of any."""

from copy import deepcopy
from typing import Any

from fftmoe.methods.registry import METHODS

AVERAGED = {"kind": "averaged", "learning_rate": 0.5}
CLOSED = {"kind": "closed-form"}
FROZEN = {"kind": "closed-form", "update": "frozen"}
FOURIER = {"kind": "closed-form", "features": "fourier", "num_features": 31}

EVERY_METHOD = tuple(METHODS)
PERSONAL = ("fedsa-lora", "local-only")  # there is no global model to save
# Local-only shares no feature statistics. Where no adapter changes the features, the head is computed only once.
CLOSED_FORM = {method: FROZEN if method == "head-only" else CLOSED for method in EVERY_METHOD if method != "local-only"}


def changed(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The recipe with other values, named `section__name`, `**{"section.name": value}` or `section`."""
    made = deepcopy(recipe)
    for key, value in changes.items():
        section, _, name = key.replace("__", ".").partition(".")
        made[section] = {**made.get(section, {}), name: value} if name else value
    return made


def five_clients(
    recipe_values: dict[str, Any], method: str = "fft-moe", head: dict[str, Any] | None = None, /, **changes: Any
) -> dict[str, Any]:
    """The tiny recipe with two rounds of three of five clients; the small tier adapts only the last block.

    Args:
        changes: further values, such as `**{"federation.rounds": 1}` or whole sections.
    """
    recipe = deepcopy(recipe_values)
    recipe |= {"method": method, "head": head or AVERAGED, "trackers": [], "evaluation": {"baselines": "off"}}
    recipe["partition"]["num_clients"] = 5
    recipe["adapter"]["shared_dim"] = 2
    recipe["budgets"][0]["blocks"] = "last-1"
    recipe["federation"] |= {"clients_per_round": 3, "local_steps": 2}
    return changed(recipe, **changes)
