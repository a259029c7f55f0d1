"""The privacy that a run has spent of its clients; it is on the disk before it is spent."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError
from fftmoe.store.files import write_atomically


@dataclass(frozen=True)
class Spent:
    """How often a run has released noisy sums, and the settings with which a resumed run continues.

    Attributes:
        noise_multiplier: z of every release, as the recipe states it or as it was solved for.
        clip_norm: C of the next release.
        releases: the number so far, which includes releases that may not have been completed.
    """

    noise_multiplier: float
    clip_norm: float
    releases: int = 0


@dataclass(frozen=True)
class PrivacyLedger:
    """`checkpoints/privacy.json` of the run in the folder `run`.

    It never returns to an older value, even when the run does: a repeated round has been released twice.
    """

    run: Path

    def write(self, spent: Spent) -> None:
        """Write the ledger; it is on the disk when this returns."""
        write_atomically(self._path, json.dumps(asdict(spent), indent=2).encode() + b"\n")

    def read(self) -> Spent:
        """Read the values that were written last.

        Raises:
            InputError: the file is missing or damaged, so the spent privacy is unknown.
        """
        try:
            return _as_spent(json.loads(self._path.read_bytes()))
        except (OSError, ValueError) as error:
            raise _lost(self._path, "what this run has spent of its clients' privacy", error) from error

    @property
    def _path(self) -> Path:
        return self.run / "checkpoints" / "privacy.json"


@dataclass(frozen=True)
class AskedLedger:
    """`checkpoints/example_privacy.json` of the run in the folder `run`: how often each client was asked to train.

    It never returns to an older value, even when the run does.
    """

    run: Path

    def write(self, asked: Counter[int]) -> None:
        """Write the ledger; it is on the disk when this returns."""
        values = {"asked": {str(client): times for client, times in sorted(asked.items())}}
        write_atomically(self._path, json.dumps(values).encode())

    def read(self) -> Counter[int]:
        """Read the counts that were written last.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            asked = json.loads(self._path.read_bytes())["asked"]
            if not all(type(times) is int and times > 0 for times in asked.values()):
                raise ValueError(f"it holds {asked!r}")
            return Counter({int(client): times for client, times in asked.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _lost(self._path, "how often this run has asked its clients", error) from error

    @property
    def _path(self) -> Path:
        return self.run / "checkpoints" / "example_privacy.json"


def _lost(path: Path, what: str, error: Exception) -> InputError:
    return InputError(
        f"{path} does not say {what} ({error}), so the run cannot continue; restore the file, or start a new run"
    )


def _as_spent(values: Any) -> Spent:
    kinds = {field.name: field.type for field in fields(Spent)}
    if not isinstance(values, Mapping) or {name: type(value) for name, value in values.items()} != kinds:
        raise ValueError(f"it holds {values!r}")
    if values["releases"] < 0 or not 0 < values["noise_multiplier"] or not 0 < values["clip_norm"]:
        raise ValueError(f"it holds {values!r}")
    return Spent(**values)
