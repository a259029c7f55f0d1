"""Logs to experiment trackers (TensorBoard, W&B, MLflow, ...), through accelerate.

accelerate is imported only when a recipe names a tracker: a run without trackers needs neither it nor TensorBoard.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, did_you_mean
from fftmoe.strict import is_number

NOT_TRACKED = ("clients", "labels", "environment", "schema_version")  # keys of a summary
INSTALL = {"tensorboard": "fftmoe[trackers]"}  # what pip installs; every other tracker is a package of the same name


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that does not exist or is not installed, before a run computes or writes anything.

    Raises:
        InputError: names the tracker, and the nearest name or the command that installs it.
    """
    if not names:
        return
    known, installed = known_trackers(), installed_trackers()
    for name in names:
        if name not in known:
            raise InputError(f"unknown tracker {name!r}{did_you_mean(name, known)}")
        if name not in installed:
            raise InputError(
                f"tracker {name!r} is not installed; install it with `pip install '{INSTALL.get(name, name)}'`, or "
                "remove it from `trackers`"
            )


def known_trackers() -> dict[str, Any]:
    """Return every tracker that accelerate supports: its name and its class."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {str(name): tracker for name, tracker in LOGGER_TYPE_TO_CLASS.items()}


def installed_trackers() -> set[str]:
    """Return the names of the trackers whose packages are installed."""
    from accelerate.tracking import get_available_trackers

    return {str(getattr(name, "value", name)) for name in get_available_trackers()}


class Trackers:
    """Logs the recipe, the numbers of each round, and the final numbers to every tracker that the recipe names.

    A tracker that fails is reported once and not used again; it does not end the run.

    Args:
        folder: the run's.
        say: takes the message about a tracker that failed.
    """

    def __init__(self, names: Sequence[str], folder: Path, run_name: str, say: Callable[[str], None] = print) -> None:
        check_trackers(names)
        self._say = say
        self._trackers = {name: _make_tracker(name, folder, run_name) for name in names}
        self._each(lambda tracker: tracker.start())

    def configure(self, recipe: Mapping[str, Any]) -> None:
        """Log the resolved recipe as hyperparameters, by dotted keys."""
        values = dict(_flattened(recipe))
        self._each(lambda tracker: tracker.store_init_configuration(values))

    def log(self, row: Mapping[str, Any]) -> None:
        """Log one round; `round` is the step."""
        values = {k: v for k, v in row.items() if is_number(v) and k != "round"}
        self._each(lambda tracker: tracker.log(values, step=row["round"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Log the numbers of a run's summary under `final/`, without single clients and without curves."""
        kept = {k: v for k, v in summary.items() if k not in NOT_TRACKED and not k.endswith("_by_round")}
        values = {f"final/{key}": value for key, value in _flattened(kept) if is_number(value)}
        self._each(lambda tracker: tracker.log(values, step=summary["rounds_completed"]))

    def close(self) -> None:
        """Flush and end every tracker."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # trackers talk to services, which can raise anything
                del self._trackers[name]
                self._say(f"tracker {name} failed; the run continues without it: {type(error).__name__}: {error}")


def _make_tracker(name: str, folder: Path, run_name: str) -> Any:
    """Make a tracker: one that writes files gets a folder inside the run's, any other the run's name."""
    from accelerate import PartialState

    PartialState()  # accelerate's trackers log through a logger that raises an error without it
    tracker = known_trackers()[name]
    if tracker.requires_logging_directory:
        return tracker("trackers", logging_dir=str(folder))
    return tracker(run_name)


def _flattened(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return dotted keys with numbers and strings, which every tracker takes.

    A list of sections with a `name` is flattened by these names; any other list becomes text.
    """
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
            value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
        if isinstance(value, Mapping):
            found += _flattened(value, f"{path}{key}.")
        elif value is not None:
            found.append((path + str(key), value if isinstance(value, int | float | str) else str(value)))
    return found
