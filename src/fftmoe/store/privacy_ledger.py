"""Records the privacy that a run has spent of its clients; it is on the disk before it is spent.

A ledger describes every release with the sampling rate and the noise with which it was made. What a later part of the
run uses, with other clients, another recipe or another version, changes nothing of what was released before.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.store.files import sha256, write_atomically
from fftmoe.strict import MOST_RESULTS, exact_json, read_small, strict_json

VERSION = 3
WITHOUT_DIGEST = 2  # the last version whose files have no digest of their own
COHORT = "poisson"  # the rule by which every release so far has drawn its records: independently of each other
Value = TypeVar("Value")


@dataclass(frozen=True)
class Spent:
    """Holds the noisy sums that a run has released, and the settings with which a resumed run continues.

    Attributes:
        noise_multiplier: z of the next release, as the recipe states it or as it was solved for.
        clip_norm: C of the next release.
        releases: all so far, including those that may not have been completed; equal ones in a row are one entry.
    """

    noise_multiplier: float
    clip_norm: float
    releases: tuple[Release, ...] = ()

    def after(self, release: Release) -> "Spent":
        """Return what is spent after one more release."""
        *before, last = self.releases or (replace(release, times=0),)
        if replace(last, times=1) == replace(release, times=1):
            return replace(self, releases=(*before, last.again(release.times)))
        return replace(self, releases=(*self.releases, release))

    @property
    def number(self) -> int:
        """Return the number of releases."""
        return sum(release.times for release in self.releases)


@dataclass(frozen=True)
class TrainingRequests:
    """Counts how often the clients of one population were asked to train with the same noise on their examples.

    Attributes:
        population: identifies the clients behind the ids; another population has other clients under the same ids.
        release: what one asking releases: the local steps of a round, at the sampling rate of the client with the
            fewest examples.
        times: by client id.
    """

    population: str
    release: Release
    times: Counter[int] = field(default_factory=Counter)

    @property
    def most(self) -> Release:
        """Return what the client that was asked most often has released."""
        return self.release.repeated(max(self.times.values(), default=0))


@dataclass(frozen=True)
class PrivacyLedger:
    """Keeps `checkpoints/privacy.json` of the run in the folder `run`.

    It never returns to an older value, even when the run does: a repeated round has been released twice.
    """

    run: Path

    def write(self, spent: Spent) -> None:
        """Write the ledger; it is on the disk when this returns."""
        values = {**asdict(spent), "releases": [_of_release(release) for release in spent.releases]}
        _write_values(self.path, values)

    def read(self) -> Spent:
        """Read the values that were written last.

        Raises:
            InputError: the file is missing, damaged or of an older version, so the spent privacy is unknown.
        """
        return _read(self.path, "what this run has spent of its clients' privacy", _as_spent)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.run / "checkpoints" / "privacy.json"


@dataclass(frozen=True)
class AskedLedger:
    """Keeps `checkpoints/example_privacy.json` of the run in the folder `run`: how often each client was asked to
    train.

    It never returns to an older value, even when the run does.
    """

    run: Path

    def write(self, asked: Sequence[TrainingRequests]) -> None:
        """Write the ledger; it is on the disk when this returns."""
        values = [
            {
                "population": part.population,
                "release": _of_release(part.release),
                "times": {str(client): times for client, times in sorted(part.times.items())},
            }
            for part in asked
        ]
        _write_values(self.path, {"asked": values})

    def read(self) -> list[TrainingRequests]:
        """Read the counts that were written last.

        Raises:
            InputError: the file is missing, damaged or of an older version.
        """
        return _read(self.path, "how often this run has asked its clients", _as_asked)

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.run / "checkpoints" / "example_privacy.json"


def _write_values(path: Path, values: Mapping[str, Any]) -> None:
    whole = {"version": VERSION, **values, "sha256": _digest(values)}
    write_atomically(path, exact_json(whole, indent=2).encode() + b"\n")


def _digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an account, so that no changed digit passes for what was written."""
    return sha256(exact_json(values, compact=True).encode())


def _read(path: Path, what: str, parse: Callable[[dict[str, Any]], Value]) -> Value:
    try:
        values = strict_json(read_small(path, MOST_RESULTS))
    except (OSError, ValueError) as error:
        raise _lost(path, what, str(error), "restore the file") from error
    if (version := values.pop("version", 1)) not in (VERSION, WITHOUT_DIGEST):
        # Version 1 did not say at which sampling rate a release was made, and counted no round in which all clients
        # were silent. Any number that is made of it may be too small.
        raise _lost(
            path, what, f"it has version {version!r} and not {VERSION}", "finish the run with the fftmoe that began it"
        )
    try:
        if version == VERSION and values.pop("sha256", None) != _digest(values):
            raise ValueError("it has changed since it was written: its SHA-256 is another")
        return parse(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _lost(path, what, str(error), "restore the file") from error


def _lost(path: Path, what: str, why: str, remedy: str) -> InputError:
    return InputError(f"{path} does not say {what} ({why}), so the run cannot continue; {remedy}, or start a new run")


def _of_release(release: Release) -> dict[str, Any]:
    return {"cohort": COHORT, **asdict(release)}


def _as_release(values: Any) -> Release:
    _check(values, {"cohort": str, "sampling_rate": float, "noise_multiplier": float, "times": int})
    if values["cohort"] != COHORT:
        raise ValueError(f"a release with the cohort rule {values['cohort']!r} cannot be counted")
    return Release(**{name: value for name, value in values.items() if name != "cohort"})


def _as_spent(values: dict[str, Any]) -> Spent:
    _check(values, {"noise_multiplier": float, "clip_norm": float, "releases": list})
    if not (0 < values["noise_multiplier"] < float("inf") and 0 < values["clip_norm"] < float("inf")):
        raise ValueError(f"it holds {values!r}")
    return Spent(**{**values, "releases": tuple(map(_as_release, values["releases"]))})


def _as_asked(values: dict[str, Any]) -> list[TrainingRequests]:
    _check(values, {"asked": list})
    found = []
    for part in values["asked"]:
        _check(part, {"population": str, "release": dict, "times": dict})
        if not all(type(times) is int and times > 0 for times in part["times"].values()):
            raise ValueError(f"it holds {part['times']!r}")
        times = Counter({int(client): times for client, times in part["times"].items()})
        found.append(TrainingRequests(part["population"], _as_release(part["release"]), times))
    return found


def _check(values: Any, types: Mapping[str, type]) -> None:
    if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != types:
        raise ValueError(f"it holds {values!r}")
