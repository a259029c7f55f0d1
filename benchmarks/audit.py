"""Attack private training, and compare what that proves with the stated epsilon: `python benchmarks/audit.py`.

The attacker knows everything but one record, sees every release, and scores how much better it fits one of two
worlds. For clients, the record is a client that sends an enormous change, or never sends anything. For single
examples, it is an example with an enormous gradient, or one with the opposite gradient. All others contribute nothing,
which helps the attacker. The draws, the clipping, the noise and the rounds are those of the product.

From the rates with which a score exceeds a threshold in both worlds follows a lower bound of epsilon
(Nasr et al., arXiv 2101.04535). One half of the trials chooses the threshold, the other half bounds both rates by
Clopper and Pearson, each at 97.5 %, so the bound holds with 95 % confidence. Results go to `results/audit.json`.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from common import RESULTS, machine, markdown, write_result
from fftmoe.client.example_privacy import noisy_backward, poisson_batches, sampling_rate
from fftmoe.records import ClientUpdate, Release, RoundPlan, ServerState, Training
from fftmoe.rounds.private import NoiseRule, NoisySums, SumsRule
from fftmoe.server.accountant import Adjacency, epsilon_of
from fftmoe.store.privacy_ledger import Spent

CONFIDENCE = 0.95
HUGE = 1e6  # far above every clip norm
CLIP, SIZE = 0.7, 3


@dataclass(frozen=True)
class Setting:
    """What is attacked: `records` clients or examples, of which `drawn` take part in each of `times` releases."""

    adjacency: Adjacency
    records: int
    drawn: int
    noise: float
    times: int
    delta: float

    @property
    def rate(self) -> float:
        """The sampling rate."""
        return sampling_rate(self.drawn, self.records)

    def stated(self, adjacency: Adjacency | None = None) -> float:
        """Return the epsilon that a run states."""
        made = [Release(self.rate, self.noise, self.times)]
        return epsilon_of(made, self.delta, adjacency or self.adjacency)


CLIENTS = Setting(Adjacency.CLIENT_ADDED_OR_REMOVED, records=5, drawn=5, noise=1.5, times=3, delta=1e-2)
SAMPLED_CLIENTS = Setting(Adjacency.CLIENT_ADDED_OR_REMOVED, records=5, drawn=2, noise=0.8, times=3, delta=1e-2)
EXAMPLES = Setting(Adjacency.EXAMPLE_REPLACED, records=4, drawn=4, noise=2.0, times=4, delta=1e-2)
SAMPLED_EXAMPLES = Setting(Adjacency.EXAMPLE_REPLACED, records=4, drawn=2, noise=1.0, times=4, delta=1e-2)
SETTINGS = {
    "clients, all in every round": CLIENTS,
    "clients, two of five in a round": SAMPLED_CLIENTS,
    "examples, all in every step": EXAMPLES,
    "examples, two of four in a step": SAMPLED_EXAMPLES,
}


def evidence(setting: Setting, seen: Sequence[float], one: float, other: float) -> float:
    """Return the logarithm of how much likelier the releases are if the record's part is `one` and not `other`.

    Args:
        seen: the released sums along the record's direction, in units of the clip norm. A sum of exactly zero has no
            noise, which happens only where nobody takes part and nothing is released.
    """
    if any(value == 0.0 for value in seen):
        return math.inf if one == 0.0 else -math.inf
    return float(sum(_log_density(setting, seen, one) - _log_density(setting, seen, other)))


def _log_density(setting: Setting, seen: Sequence[float], part: float) -> np.ndarray:
    """The logarithm of the density of each released sum, up to a constant."""
    x, q, scale = np.asarray(seen), setting.rate, 2 * setting.noise**2
    absent = math.log1p(-q) if q < 1 else -math.inf
    return np.logaddexp(absent - x**2 / scale, math.log(q) - (x - part) ** 2 / scale)


class NoLedger:
    """Stands in for the file, which would wait for the disk in every trial."""

    def write(self, spent: Spent) -> None:
        """Write nothing."""


@dataclass
class Summing:
    """A method that adds the mean change to its only tensor."""

    merge: Any = None

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """See `Method.aggregate`."""
        total = self.merge({})
        for update in updates:
            total.add(update)
        deltas, _ = total.mean()
        moved = {name: tensor + deltas[name] for name, tensor in state.tensors.items()}
        return replace(state, round=state.round + 1, tensors=moved), {}


def client_trial(setting: Setting, part: float) -> list[float]:
    """Return the sums that rounds release if client 0 sends a huge change (`part` 1), or never anything (0)."""
    expected = {"head.bias": torch.full((1,), float(setting.drawn), dtype=torch.float64)}
    rule = NoiseRule(setting.rate, setting.delta, None, expected, setting.drawn, None)
    method, ledger = Summing(), NoLedger()
    sums = NoisySums(method, SumsRule(1), rule, setting.records, Spent(setting.noise, CLIP), ledger)  # type: ignore[arg-type]
    state, seen = ServerState(0, {"head.bias": torch.zeros(SIZE, dtype=torch.float64)}), []
    for t in range(1, setting.times + 1):
        sends = part and 0 in sums.sample(t)
        change = {"head.bias": torch.full((SIZE,), HUGE)}
        updates = [ClientUpdate(t, 0, 1, change)] if sends else []
        before = state.tensors["head.bias"]
        state, _ = sums.merge(state, RoundPlan(t, ()), updates, quorum=0)
        moved = (state.tensors["head.bias"] - before) * setting.drawn / CLIP
        seen.append(float(moved.sum()) / math.sqrt(SIZE))
    return seen


def example_trial(setting: Setting, part: float) -> list[float]:
    """Return the sums that steps release if example 0 has a huge gradient of this sign."""
    parameter = torch.nn.Parameter(torch.zeros(SIZE))
    training = Training(setting.drawn, 0.1, 0.1, example_clip=CLIP, example_noise=setting.noise)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return (part * HUGE if 0 in rows.tolist() else 0.0) * parameter.sum()

    seen = []
    for rows in poisson_batches(np.arange(setting.records), setting.drawn, setting.times):
        noisy_backward(loss_of, rows, [parameter], training)
        assert parameter.grad is not None
        seen.append(float(parameter.grad.sum()) * setting.drawn / CLIP / math.sqrt(SIZE))
    return seen


def lower_bound(setting: Setting, trials: int) -> float:
    """Return what the attack proves: with 95 % confidence, epsilon at the setting's delta is at least this."""
    examples = setting.adjacency is Adjacency.EXAMPLE_REPLACED
    trial, worlds = (example_trial, (1.0, -1.0)) if examples else (client_trial, (1.0, 0.0))
    scores = [[evidence(setting, trial(setting, world), *worlds) for _ in range(trials)] for world in worlds]
    one, other = (np.nan_to_num(np.array(found)) for found in scores)
    return max(_proved(one, other, setting.delta), _proved(-other, -one, setting.delta))


def _proved(likely: np.ndarray, unlikely: np.ndarray, delta: float) -> float:
    """Bound epsilon by the event "the score is above a threshold"."""
    half = len(likely) // 2
    levels = np.quantile(np.concatenate([likely[:half], unlikely[:half]]), np.linspace(0.01, 0.995, 198))
    bounds = [_bound((likely[:half] > t).sum(), (unlikely[:half] > t).sum(), half, delta) for t in levels]
    level = levels[int(np.argmax(bounds))]
    rest = len(likely) - half
    return max(0.0, _bound((likely[half:] > level).sum(), (unlikely[half:] > level).sum(), rest, delta))


def _bound(hits: int, alarms: int, trials: int, delta: float) -> float:
    """Return the logarithm of the least ratio of the rates, less delta, that fits both counts."""
    each = 1 - (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(1 - each, hits, trials - hits + 1) if hits else 0.0
    high = stats.beta.ppf(each, alarms + 1, trials - alarms) if alarms < trials else 1.0
    return math.log((low - delta) / high) if low > delta else -math.inf


def audit(trials: int, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Attack every setting."""
    rows = []
    for name, setting in SETTINGS.items():
        proved, stated = lower_bound(setting, trials), setting.stated()
        rows.append({"attacked": name, **asdict(setting), "stated": stated, "proved": proved})
        say(f"{name}: stated {stated:.3f}, proved {proved:.3f}")
        assert proved <= stated, "the attack proves more than is stated"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000, help="in each world")
    parser.add_argument("--results", type=Path, default=RESULTS / "audit.json")
    arguments = parser.parse_args()
    rows = audit(arguments.trials)
    found = {"machine": machine(), "trials": arguments.trials, "confidence": CONFIDENCE, "rows": rows}
    write_result(arguments.results, found, "rows")
    columns = ["attacked", "noise", "releases", "delta", "stated epsilon", "proved by the attack"]
    table = [
        [
            r["attacked"],
            f"{r['noise']:g}",
            str(r["times"]),
            f"{r['delta']:g}",
            f"{r['stated']:.2f}",
            f"{r['proved']:.2f}",
        ]
        for r in rows
    ]
    print(markdown(columns, table))


if __name__ == "__main__":
    main()
