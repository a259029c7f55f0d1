"""Settings of private runs, engines that lose clients, and noise that a test chooses."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.rounds.private import NoisySums
from fftmoe.setup import privacy as privacy_module
from finished import Finished

SUMS = {"min_contributors": 2}
NOISY = {"min_contributors": 1, "clip_norm": 0.5, "noise_multiplier": 8.0, "delta": 0.001}
LABELS = ["blue", "green", "red"]  # of the tiny recipe's data; differential privacy needs them in the recipe
PrivateRecipe = Callable[..., dict[str, Any]]
RunPrivate = Callable[..., Finished]


def spent(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoints" / "privacy.json").read_text())


def releases(folder: Path) -> int:
    """The number of releases that the ledger counts."""
    return sum(made["times"] for made in spent(folder)["releases"])


def with_chance(monkeypatch: pytest.MonkeyPatch, **chance: Any) -> None:
    monkeypatch.setattr(privacy_module, "NoisySums", partial(NoisySums, **chance))


class Wrapped:
    """An engine of real clients; subclasses change it."""

    reliable = True

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def absent(self) -> Collection[int]:
        return ()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        raise NotImplementedError

    def close(self) -> None:
        self.inner.close()

    def peak_rss_mib(self) -> float:
        return 0.0


class Unreliable(Wrapped):
    """These clients never answer."""

    reliable = False

    def __init__(self, inner: Engine, lost: Collection[int]) -> None:
        super().__init__(inner)
        self.lost = lost

    def absent(self) -> Collection[int]:
        return self.lost

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        for group in groups:
            for client_id, message in group:
                if client_id in self.lost:
                    yield Fault(client_id, "absent", "lost for a test")
                else:
                    yield from self.inner.run_clients([[(client_id, message)]])
