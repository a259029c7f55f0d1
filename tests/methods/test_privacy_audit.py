"""An audit of private sums: what an adversary finds out who knows everything but one client.

After Andrew et al., arXiv 2302.03098.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fftmoe.methods.noise import normal
from fftmoe.methods.private import Noise, PrivateSum, clipped
from fftmoe.records import ClientUpdate, Release, Tensors
from fftmoe.server.accountant import Adjacency, epsilon_of
from private_updates import (
    nothing,
)

TRIALS = 20_000
PARTS = 16
AUDITED = {f"shared.{i}.up": torch.Size((1, 4)) for i in range(PARTS)}
Z, DELTA = 3.0, 1e-5


class Trials:
    """Draw the noise of all trials in one tensor, with the trials as first dimension; draw number `silent` is zero."""

    def __init__(self, silent: int = -1) -> None:
        self.calls, self.silent = 0, silent

    def __call__(self, shape: Sequence[int]) -> torch.Tensor:
        self.calls += 1
        drawn = normal((TRIALS, *shape))
        return torch.zeros_like(drawn) if (self.calls - 1) % PARTS == self.silent else drawn


class Heavy(PrivateSum):
    """A broken mechanism: the canary counts ten times."""

    def add(self, update: ClientUpdate) -> None:
        super().add(update)
        if update.client_id == 0:
            self.sums = {name: 10 * total for name, total in self.sums.items()}


class Separate(PrivateSum):
    """A broken mechanism: each tensor is clipped by itself."""

    def add(self, update: ClientUpdate) -> None:
        for name, tensor in update.tensors.items():
            self.last_client = -1
            super().add(replace(update, tensors={name: tensor}))


def audited(kind: type[PrivateSum], canary: Tensors, draw: Any) -> float:
    """Compute a lower bound of epsilon at DELTA, with 95 % confidence, from releases with and without the canary."""
    expected = {name: torch.ones(1, dtype=torch.float64) for name in AUDITED}
    others = [ClientUpdate(1, n, 1, {k: 0.01 * torch.ones(s) for k, s in AUDITED.items()}) for n in (1, 2)]
    direction = clipped(canary, 1.0)
    scores = []
    for present in (True, False):
        total = kind(AUDITED, 1, 1.0, noise=Noise(Z, expected, 1.0, nothing, draw))
        for one in [*([ClientUpdate(1, 0, 1, canary)] if present else []), *others]:
            total.add(one)
        parts = [(delta * direction[name]).sum((1, 2)) for name, delta in total.mean()[0].items()]
        scores.append(torch.stack(parts).sum(0).numpy())
    return max(bound(*scores), bound(-scores[1], -scores[0]))


def bound(present: np.ndarray, absent: np.ndarray) -> float:
    """Bound both rates of "the score is above t": one half of the trials gives t, the other Clopper-Pearson bounds."""
    half = TRIALS // 2
    levels = np.quantile(np.concatenate([present[:half], absent[:half]]), np.linspace(0.02, 0.98, 97))
    rates = [((s[:half, None] > levels).mean(0)) for s in (present, absent)]
    chosen = levels[np.argmax((rates[0] - DELTA) / (rates[1] + 1 / half))]
    hits, alarms = (int((s[half:] > chosen).sum()) for s in (present, absent))
    low = stats.beta.ppf(0.025, hits, half - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, alarms + 1, half - alarms)
    return math.log(max(low - DELTA, 1e-300) / high)


def canaries() -> dict[str, Tensors]:
    """Make an update far above the bound, in one tensor or in all."""
    spread = {name: torch.full(shape, 1e6) for name, shape in AUDITED.items()}
    return {"one": {n: t if n == "shared.0.up" else 0 * t for n, t in spread.items()}, "all": spread}


@pytest.mark.parametrize("canary", ["one", "all"])
def test_an_audit_finds_no_more_than_the_stated_epsilon(canary: str):
    claimed = epsilon_of([Release(1.0, Z)], DELTA, Adjacency.CLIENT_ADDED_OR_REMOVED)
    assert claimed == pytest.approx(1.3, abs=0.1)
    assert 0.05 < audited(PrivateSum, canaries()[canary], Trials()) <= claimed


@pytest.mark.parametrize(
    ("kind", "canary", "silent"), [(Heavy, "all", -1), (PrivateSum, "one", 0), (Separate, "all", -1)]
)
def test_an_audit_detects_a_broken_mechanism(kind: type[PrivateSum], canary: str, silent: int):
    """The broken mechanisms: a client of weight 10, no noise on one tensor, and tensors that are clipped separately."""
    claimed = epsilon_of([Release(1.0, Z)], DELTA, Adjacency.CLIENT_ADDED_OR_REMOVED)
    assert audited(kind, canaries()[canary], Trials(silent)) > claimed + 0.5
