"""Merges the rounds of a private run (docs/privacy.md): sums over enough clients, with noise or without."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fftmoe.errors import InputError
from fftmoe.methods.base import Method
from fftmoe.methods.noise import Draw, Uniform, normal, os_uniform
from fftmoe.methods.private import Noise, PrivateSum, aggregate_sums
from fftmoe.records import ClientUpdate, Release, RoundPlan, ServerState
from fftmoe.rounds.counted import check_account
from fftmoe.rounds.example_cost import ExampleCost
from fftmoe.server.accountant import Adjacency, divided_noise, epsilon_of, next_clip_norm, poisson_cohort
from fftmoe.server.apply import Diagnostics, aggregate_round, apply_round
from fftmoe.shown import count_of
from fftmoe.store.privacy_ledger import PrivacyLedger, Spent

CLIENT_ADJACENCY = Adjacency.CLIENT_ADDED_OR_REMOVED
FROM_ROWS = frozenset({"notes"})  # what a summary says about the rows of clients
OF_COHORTS = frozenset(
    {
        *("bytes_down", "bytes_up", "client_seconds", "by_tier", "faults", "fault_counts", "seconds", "phase_seconds"),
        *("per_client_round_by_tier", "clients_failed", "predicted_by_tier", "prediction"),
        *("peak_rss_mib", "expected_rss_mib"),
    }
)
"""What tells how many clients took part in a round, how long they took, or how much data they have."""


@dataclass(frozen=True)
class SumsRule:
    """States what the server keeps of a round's updates.

    Attributes:
        min_contributors: a tensor or an expert changes only where so many clients contribute to it.
        kind: what a row is divided by, `per-expert` or `fedavg` (see `PrivateSum`).
        clip_norm: the largest norm of a client's update; infinite for no bound.
    """

    min_contributors: int
    kind: str = "per-expert"
    clip_norm: float = math.inf


class SumsOnly:
    """Merges sums over clients, and keeps nothing of a single client.

    Args:
        cost: what the noise that clients add for their own examples has cost; None where they add none.
    """

    def __init__(self, method: Method, rule: SumsRule, cost: ExampleCost | None = None) -> None:
        self._method, self._rule, self._cost = method, rule, cost
        self.hides = frozenset() if cost is None else FROM_ROWS

    def promise(self, rounds_left: int) -> str:
        """Return the guarantee in words, printed when the run starts or goes on."""
        fewest = count_of(self._rule.min_contributors, "client")
        sums = f"private: the server keeps sums over {fewest} or more, and no update"
        return sums if self._cost is None else f"{sums}; {self._cost.promise(rounds_left)}"

    def record(self) -> None:
        """Write what has been spent to the run's folder."""
        if self._cost is not None:
            self._cost.ask(())

    def check_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse to go on with an account that holds less than these rows of the run say; see `check_account`."""
        if self._cost is not None:
            self._cost.check_rows(rows)

    def reason_to_end(self, round: int) -> str | None:
        """See `Merging`."""
        return None if self._cost is None or self._cost.may_ask_again() else _too_costly(round)

    def before_sending(self, plan: RoundPlan) -> None:
        """Count that the examples of these clients are used once more."""
        if self._cost is not None:
            self._cost.ask(client.client_id for client in plan.clients)

    def merge(
        self, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int
    ) -> tuple[ServerState, Diagnostics]:
        """See `Merging`."""
        state, diagnostics = apply_round(self, state, plan, updates, quorum)
        return state, diagnostics if self._cost is None else {**diagnostics, **self._cost.row()}

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, Diagnostics]:
        """See `Method.aggregate`."""
        rule = self._rule
        total = PrivateSum(_shapes_of(state), rule.min_contributors, rule.clip_norm, rule.kind)
        return aggregate_sums(self._method, total, state, updates)

    def summary(self) -> dict[str, Any]:
        """Return the section `privacy` of `summary.json`."""
        sums = {"min_contributors": self._rule.min_contributors}
        return sums if self._cost is None else {**sums, "examples": self._cost.summary()}


@dataclass(frozen=True)
class NoiseRule:
    """States the differential privacy of clients.

    Attributes:
        sampling_rate: the probability with which each client is drawn for a round, independently of the others.
        delta: of the guarantee. epsilon: the run ends before a round after which more would be spent; None: never.
        expected: tensor name -> float64 [M], how many clients contribute to each of its rows in an average round.
        clients_per_round: on average.
        clip_quantile: the clip norm follows this quantile of the clients' norms; None: it is fixed.
    """

    sampling_rate: float
    delta: float
    epsilon: float | None
    expected: Mapping[str, torch.Tensor]
    clients_per_round: int
    clip_quantile: float | None


class NoisySums:
    """Merges noisy sums (client-level differential privacy); each release is counted before its noise is drawn.

    Args:
        num_clients: of the population.
        spent: what the run has spent so far. ledger: where that is kept.
        draw: the noise. uniform: the random numbers that choose a cohort.

    Raises:
        InputError: with this noise, a single round costs more than the stated epsilon.
    """

    def __init__(
        self,
        method: Method,
        rule: SumsRule,
        noise: NoiseRule,
        num_clients: int,
        spent: Spent,
        ledger: PrivacyLedger,
        draw: Draw = normal,
        uniform: Uniform = os_uniform,
    ) -> None:
        self._method, self._rule, self._noise, self._num_clients = method, rule, noise, num_clients
        self._ledger, self._draw, self._uniform = ledger, draw, uniform
        self.spent, self.stopped_early, self.hides = spent, False, FROM_ROWS | OF_COHORTS
        self._next = Release(noise.sampling_rate, spent.noise_multiplier)
        single = epsilon_of([self._next], noise.delta, CLIENT_ADJACENCY)
        if not spent.releases and noise.epsilon is not None and single > noise.epsilon:
            raise InputError(
                f"a single round costs an epsilon of {single:.3g}, above privacy.epsilon="
                f"{noise.epsilon:g}; raise privacy.noise_multiplier, or leave it out to have it found"
            )

    def promise(self, rounds_left: int) -> str:
        """Return the guarantee in words, printed when the run starts or goes on."""
        rule, rows = self._noise, [float(row) for count in self._noise.expected.values() for row in count]
        frozen = sum(row < self._rule.min_contributors for row in rows)
        return (
            f"private: epsilon {self._after(rounds_left):.3g} at delta {rule.delta:g} after all rounds "
            f"({CLIENT_ADJACENCY}); noise {self._next.noise_multiplier:.4g} times the clip norm; clients drawn with "
            f"probability {rule.sampling_rate:.3g}; experts and tensors that too few clients hold never change: "
            f"{frozen} of {len(rows)}. Noise and cohorts come from the operating system: a second run has other bytes"
        )

    def record(self) -> None:
        """Write what has been spent to the run's folder; it is on the disk when this returns."""
        self._ledger.write(self.spent)

    def check_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Refuse to go on with an account that holds less than these rows of the run say; see `check_account`."""
        check_account(rows, self.spent.number, "releases", "epsilon", self._ledger.path)

    def reason_to_end(self, round: int) -> str | None:
        """See `Merging`."""
        most = self._noise.epsilon
        self.stopped_early = most is not None and self._after(1) > most
        return _too_costly(round) if self.stopped_early else None

    def _after(self, further: int) -> float:
        """Return epsilon after all releases so far, each as it was made, and so many more as they are made now."""
        made = [*self.spent.releases, replace(self._next, times=further)]
        return epsilon_of(made, self._noise.delta, CLIENT_ADJACENCY)

    def before_sending(self, plan: RoundPlan) -> None:
        """Do nothing: asking clients costs nothing, as releases are counted."""

    def sample(self, round: int) -> tuple[int, ...]:
        """Draw the cohort of the next round from the operating system's random numbers; it may be empty."""
        return poisson_cohort(self._num_clients, self._next.sampling_rate, self._uniform)

    def merge(
        self, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int
    ) -> tuple[ServerState, Diagnostics]:
        """See `Merging`.

        The sums are released whoever answers, also if nobody does. A model that stayed as it was would tell everyone
        that all clients of the round were silent.
        """
        assert not quorum, "the number of answers must decide nothing"
        state, diagnostics = aggregate_round(self, state, plan, updates)
        return state, {**diagnostics, **self._row()}

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, Diagnostics]:
        """See `Method.aggregate`."""
        rule, (z_delta, z_count) = self._rule, self._multipliers()
        expected, everyone = dict(self._noise.expected), float(self._noise.clients_per_round)
        noise = Noise(z_delta * self.spent.clip_norm, expected, everyone, self._announce, self._draw)
        total = PrivateSum(_shapes_of(state), rule.min_contributors, self.spent.clip_norm, rule.kind, noise)
        merged, diagnostics = aggregate_sums(self._method, total, state, updates)
        if self._noise.clip_quantile is not None:
            above_half = total.within - total.num_clients / 2 + z_count * float(self._draw((1,)))
            norm = next_clip_norm(self.spent.clip_norm, 0.5 + above_half / everyone, self._noise.clip_quantile)
            self.spent = replace(self.spent, clip_norm=norm)
            self.record()
        return merged, diagnostics

    def _multipliers(self) -> tuple[float, float]:
        """Return the noise on the updates, and that on the number of clients that were not clipped,
        where it is counted.
        """
        z = self._next.noise_multiplier
        return (z, 0.0) if self._noise.clip_quantile is None else divided_noise(z)

    def _announce(self) -> None:
        self.spent = self.spent.after(self._next)
        self.record()

    def _row(self) -> dict[str, Any]:
        return {"epsilon": self._after(0), "releases": self.spent.number}

    def summary(self) -> dict[str, Any]:
        """Return the section `privacy` of `summary.json`."""
        return {
            **self._row(),
            "delta": self._noise.delta,
            "adjacency": str(CLIENT_ADJACENCY),
            "history": [asdict(made) for made in self.spent.releases],
            "stopped_early": self.stopped_early,
            "noise_multiplier": self._next.noise_multiplier,
            "sampling_rate": self._next.sampling_rate,
            "clip_norm": self.spent.clip_norm,
            "min_contributors": self._rule.min_contributors,
        }


PrivateMerging = SumsOnly | NoisySums


def _too_costly(round: int) -> str:
    return f"round {round} would cost more than the stated epsilon: the run ends before it"


def _shapes_of(state: ServerState) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.tensors.items()}
