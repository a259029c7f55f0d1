"""Defines what every module that the adapter wraps has in common, as PEFT's classes want it."""

from typing import NoReturn

from peft.tuners.tuners_utils import BaseTunerLayer

from fftmoe.errors import InputError


class MoeTunerLayer(BaseTunerLayer):
    """Is a module that the adapter wraps."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse: which experts act depends on the input, so no fixed weight equals the adapter."""
        raise InputError(
            "a mixture-of-experts adapter cannot be merged into the backbone, because the experts it uses "
            "depend on the input; keep it attached, or call unload() to remove it"
        )

    def unmerge(self) -> None:
        """Do nothing, as nothing is ever merged."""
