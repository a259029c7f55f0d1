"""Experiment trackers, by accelerate: TensorBoard by default, W&B, MLflow and others by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fftmoe.errors import InputError, did_you_mean

KNOWN = {str(name): tracker for name, tracker in LOGGER_TYPE_TO_CLASS.items()}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed, before a run writes anything."""
    installed = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in KNOWN:
            raise InputError(f"unknown tracker {name!r}{did_you_mean(name, KNOWN)}")
        if name not in installed:
            raise InputError(f"tracker {name!r} is not installed; install it, or drop it from `trackers`")


class Trackers:
    """Logs each round's numbers to every tracker that the recipe names."""

    def __init__(self, names: Sequence[str], folder: Path, run_name: str) -> None:
        check_trackers(names)
        self._trackers = []
        for name in names:
            # A tracker that writes files takes a folder name below the run's; the others take the run's name.
            in_folder = KNOWN[name].requires_logging_directory
            place = {"logging_dir": str(folder)} if in_folder else {}
            self._trackers.append(KNOWN[name]("trackers" if in_folder else run_name, **place))
            self._trackers[-1].start()

    def log(self, row: Mapping[str, Any]) -> None:
        """One round; `round` is the step."""
        values = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "round"}
        for tracker in self._trackers:
            tracker.log(values, step=row["round"])

    def close(self) -> None:
        """Flush and end every tracker."""
        for tracker in self._trackers:
            tracker.finish()
