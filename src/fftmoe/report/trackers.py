"""Experiment trackers, by accelerate: TensorBoard by default, W&B, MLflow and others by name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fftmoe.errors import InputError, did_you_mean

LEFT_OUT = ("clients", "environment", "schema_version")  # of a summary
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
    """Logs the recipe, each round's numbers and the final ones to every tracker that the recipe names.

    A tracker that fails, when it starts or later, is told once and left out from then on: it ends no run.

    Args:
        folder: the run's.
        say: takes the line about one that failed.
    """

    def __init__(self, names: Sequence[str], folder: Path, run_name: str, say: Callable[[str], None] = print) -> None:
        check_trackers(names)
        PartialState()  # without it the log of accelerate's own trackers, which they write to, raises an error
        self._say = say
        self._trackers: dict[str, Any] = {}
        for name in names:
            # A tracker that writes files takes a folder name below the run's; the others take the run's name.
            in_folder = KNOWN[name].requires_logging_directory
            place = {"logging_dir": str(folder)} if in_folder else {}
            self._trackers[name] = KNOWN[name]("trackers" if in_folder else run_name, **place)
        self._each(lambda tracker: tracker.start())

    def configure(self, recipe: Mapping[str, Any]) -> None:
        """The resolved recipe as hyperparameters, by dotted keys."""
        values = dict(_flat(recipe))
        self._each(lambda tracker: tracker.store_init_configuration(values))

    def log(self, row: Mapping[str, Any]) -> None:
        """One round; `round` is the step."""
        values = {k: v for k, v in row.items() if _is_number(v) and k != "round"}
        self._each(lambda tracker: tracker.log(values, step=row["round"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The numbers of a run's summary, under `final/`; nothing of single clients, and no second curve."""
        kept = {k: v for k, v in summary.items() if k not in LEFT_OUT and not k.endswith("_by_round")}
        values = {f"final/{key}": value for key, value in _flat(kept) if _is_number(value)}
        self._each(lambda tracker: tracker.log(values, step=summary["rounds_completed"]))

    def close(self) -> None:
        """Flush and end every tracker."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever a service far away comes up with
                del self._trackers[name]
                self._say(f"tracker {name} failed, and the run goes on without it: {type(error).__name__}: {error}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted keys with values of the kinds that every tracker takes: lists are told as text, by name where they can."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
            value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        if isinstance(value, Mapping):
            found += _flat(value, f"{path}{key}.")
        elif value is not None:
            found.append((path + str(key), value if isinstance(value, int | float | str) else str(value)))
    return found
