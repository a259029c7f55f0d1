"""What a run has spent of its clients' privacy, on the disk before it is spent."""

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
    """How often a run has released noisy sums, and what a run that goes on has to know beside it.

    Attributes:
        noise_multiplier: z of every release, stated or solved for.
        clip_norm: C of the next.
        releases: so far, those among them that were perhaps never finished.
    """

    noise_multiplier: float
    clip_norm: float
    releases: int = 0


@dataclass(frozen=True)
class PrivacyLedger:
    """`checkpoints/privacy.json` of the run in `run`.

    It never goes back, whatever a run goes back to: a round that is played again has been released twice.
    """

    run: Path

    def write(self, spent: Spent) -> None:
        """Returns when it is on the disk."""
        write_atomically(self._path, json.dumps(asdict(spent), indent=2).encode() + b"\n")

    def read(self) -> Spent:
        """What was written last.

        Raises:
            InputError: the file is not there, or not whole: nobody knows what was spent.
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
    """`checkpoints/example_privacy.json` of the run in `run`: how often each client was asked. It never goes back."""

    run: Path

    def write(self, asked: Counter[int]) -> None:
        """Returns when it is on the disk."""
        values = {"asked": {str(client): times for client, times in sorted(asked.items())}}
        write_atomically(self._path, json.dumps(values).encode())

    def read(self) -> Counter[int]:
        """What was written last.

        Raises:
            InputError: the file is not there, or not whole.
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
        f"{path} does not say {what} ({error}), and without it the run cannot go on; put the file back as it was, or "
        "start a new run"
    )


def _as_spent(values: Any) -> Spent:
    kinds = {field.name: field.type for field in fields(Spent)}
    if not isinstance(values, Mapping) or {name: type(value) for name, value in values.items()} != kinds:
        raise ValueError(f"it holds {values!r}")
    if values["releases"] < 0 or not 0 < values["noise_multiplier"] or not 0 < values["clip_norm"]:
        raise ValueError(f"it holds {values!r}")
    return Spent(**values)
