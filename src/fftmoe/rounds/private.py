"""How the rounds of a private run are held (docs/privacy.md): who is in them, what is merged, and when they end."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fftmoe.config import PrivacySection
from fftmoe.errors import InputError
from fftmoe.methods.noise import Draw, Uniform, normal, os_uniform
from fftmoe.methods.private import Noise, PrivateSum, aggregate_sums, holders
from fftmoe.records import ClientUpdate, ServerState
from fftmoe.rounds.private_examples import ExampleCost
from fftmoe.server.accountant import Mechanism, accounting, calibrate, divided_noise, next_clip_norm, poisson_cohort
from fftmoe.setup.compose import Experiment
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger, Spent


class SumsOnly:
    """Rounds that keep nothing but sums over enough clients. In a round it stands where the method would merge.

    Args:
        cost: of the clients' examples, where clients protect them.
    """

    def __init__(self, experiment: Experiment, settings: PrivacySection, cost: ExampleCost | None = None) -> None:
        self._experiment, self._settings, self._cost = experiment, settings, cost

    @property
    def promise(self) -> str:
        """For a person."""
        sums = f"private: the server keeps sums over {self._settings.min_contributors} clients or more, and no update"
        return sums if self._cost is None else f"{sums}; {self._cost.promise}"

    def record(self) -> None:
        """Nothing is spent but examples."""
        self.ask(())

    def may_go_on(self) -> bool:
        """As long as the recipe says."""
        return self._cost is None or self._cost.may_ask_again()

    def ask(self, cohort: Iterable[int]) -> None:
        """Called with the clients of a round before anything is sent."""
        if self._cost is not None:
            self._cost.ask(cohort)

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """See `Method`."""
        most = math.inf if self._settings.clip_norm is None else self._settings.clip_norm
        total = PrivateSum(_shapes(state), self._settings.min_contributors, most, _kind(self._experiment))
        return aggregate_sums(self._experiment.method, total, state, updates)

    def told(self) -> dict[str, Any]:
        """Nothing of a round beside what it learnt, and what examples have cost."""
        return {} if self._cost is None else self._cost.told()

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        sums = {"min_contributors": self._settings.min_contributors}
        return sums if self._cost is None else {**sums, "examples": self._cost.summary()}


class NoisySums:
    """Rounds of differential privacy, each counted before its noise is drawn.

    Args:
        spent: by the run so far. ledger: where that is kept.
        draw, uniform: of the noise, and of who is in a round.

    Raises:
        InputError: nothing can be promised with this noise.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: PrivacySection,
        initial: ServerState,
        spent: Spent,
        ledger: PrivacyLedger,
        draw: Draw = normal,
        uniform: Uniform = os_uniform,
    ) -> None:
        self._experiment, self._settings = experiment, settings
        self._ledger, self._draw, self._uniform = ledger, draw, uniform
        self.spent, self.stopped_early = spent, False
        self.mechanism = Mechanism(sampling_rate(experiment), spent.noise_multiplier, delta_of(experiment, settings))
        counts = holders(experiment.method, initial, experiment.budgets, experiment.training)
        per_round, everyone = experiment.recipe.federation.clients_per_round, experiment.num_clients
        self._expected = {name: count * per_round / everyone for name, count in counts.items()}
        if not spent.releases and not self._affordable(1):
            raise InputError(
                f"a single round costs an epsilon of {self.mechanism.epsilon(1):.3g}, above privacy.epsilon="
                f"{settings.epsilon:g}; raise privacy.noise_multiplier, or leave it out to have it found"
            )

    @property
    def promise(self) -> str:
        """For a person."""
        rounds, least = self._experiment.recipe.federation.rounds, self._settings.min_contributors
        mechanism, rows = self.mechanism, [float(row) for count in self._expected.values() for row in count]
        frozen = sum(row < least for row in rows)
        return (
            f"private: epsilon {mechanism.epsilon(rounds):.3g} at delta {mechanism.delta:g} after {rounds} rounds; "
            f"noise {mechanism.noise_multiplier:.4g} times the clip norm; clients drawn with probability "
            f"{mechanism.sampling_rate:.3g}; {frozen} of {len(rows)} experts and tensors stay as they are, held by too "
            "few. Noise and cohorts come from the operating system: a second run has other bytes"
        )

    def record(self) -> None:
        """Keep what is spent: it is on the disk when this returns."""
        self._ledger.write(self.spent)

    def may_go_on(self) -> bool:
        """Whether another round keeps within the stated epsilon; the run ends before the first that does not."""
        self.stopped_early = not self._affordable(self.spent.releases + 1)
        return not self.stopped_early

    def _affordable(self, releases: int) -> bool:
        most = self._settings.epsilon
        return most is None or self.mechanism.epsilon(releases) <= most

    def ask(self, cohort: Iterable[int]) -> None:
        """Who is asked costs nothing: releases are what is counted."""

    def draw_cohort(self) -> tuple[int, ...]:
        """Who is in the next round; perhaps nobody."""
        return poisson_cohort(self._experiment.num_clients, self.mechanism.sampling_rate, self._uniform)

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """See `Method`."""
        settings, (z_delta, z_count) = self._settings, self._multipliers()
        everyone = float(self._experiment.recipe.federation.clients_per_round)
        noise = Noise(z_delta * self.spent.clip_norm, self._expected, everyone, self._announce, self._draw)
        total = PrivateSum(
            _shapes(state), settings.min_contributors, self.spent.clip_norm, _kind(self._experiment), noise
        )
        merged, told = aggregate_sums(self._experiment.method, total, state, updates)
        if settings.clip_quantile is not None:
            above_half = total.within - total.num_clients / 2 + z_count * float(self._draw((1,)))
            norm = next_clip_norm(self.spent.clip_norm, 0.5 + above_half / everyone, settings.clip_quantile)
            self.spent = replace(self.spent, clip_norm=norm)
            self.record()
        return merged, told

    def _multipliers(self) -> tuple[float, float]:
        """Of the noise on the changes, and on the number of clients that were not clipped, where it is counted."""
        z = self.mechanism.noise_multiplier
        return (z, 0.0) if self._settings.clip_quantile is None else divided_noise(z)

    def _announce(self) -> None:
        self.spent = replace(self.spent, releases=self.spent.releases + 1)
        self.record()

    def told(self) -> dict[str, Any]:
        """What has been spent after a round."""
        return {"epsilon": self.mechanism.epsilon(self.spent.releases)}

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return {
            **self.told(),
            "delta": self.mechanism.delta,
            "releases": self.spent.releases,
            "stopped_early": self.stopped_early,
            "noise_multiplier": self.mechanism.noise_multiplier,
            "sampling_rate": self.mechanism.sampling_rate,
            "clip_norm": self.spent.clip_norm,
            "min_contributors": self._settings.min_contributors,
        }


PrivateRounds = SumsOnly | NoisySums


def private_rounds(experiment: Experiment, initial: ServerState, folder: Path, resumed: bool) -> PrivateRounds | None:
    """As the recipe asks for them; None where it asks for no privacy. Nothing is written yet.

    Args:
        folder: the run's. resumed: whether it has spent something already.

    Raises:
        InputError: a library is missing, the recipe cannot be honoured, or what was spent cannot be read.
    """
    settings = experiment.recipe.privacy
    if settings is None:
        return None
    if settings.noisy or settings.examples is not None:
        accounting()  # it is missed now, not after the first round
    if settings.examples is not None:
        asked = AskedLedger(folder)
        return SumsOnly(
            experiment, settings, ExampleCost(experiment, settings, asked, asked.read() if resumed else Counter())
        )
    if not settings.noisy:
        return SumsOnly(experiment, settings)
    ledger = PrivacyLedger(folder)
    spent = ledger.read() if resumed else first_spent(experiment, settings)
    return NoisySums(experiment, settings, initial, spent, ledger)


def first_spent(experiment: Experiment, settings: PrivacySection) -> Spent:
    """Of a run that has not begun: its noise, stated or found for all rounds.

    Raises:
        InputError: there is no such noise, or `dp-accounting` is missing.
    """
    assert settings.clip_norm is not None
    delta, z = delta_of(experiment, settings), settings.noise_multiplier
    if z is None:
        assert settings.epsilon is not None
        rate, rounds = sampling_rate(experiment), experiment.recipe.federation.rounds
        z = calibrate(rate, settings.epsilon, delta, rounds)
    return Spent(noise_multiplier=z, clip_norm=settings.clip_norm)


def sampling_rate(experiment: Experiment) -> float:
    """q: `clients_per_round` are in a round on average."""
    return experiment.recipe.federation.clients_per_round / experiment.num_clients


def delta_of(experiment: Experiment, settings: PrivacySection) -> float:
    """The recipe's.

    Raises:
        InputError: a mechanism that gave away one client of the population could have it.
    """
    assert settings.delta is not None
    if settings.delta >= 1 / experiment.num_clients:
        raise InputError(
            f"privacy.delta={settings.delta:g} would allow to give away one of {experiment.num_clients} clients "
            f"entirely; set it well below {1 / experiment.num_clients:.2g}"
        )
    return settings.delta


def _kind(experiment: Experiment) -> str:
    """The aggregation of experts; all other tensors are averaged over the clients that sent them."""
    trains_experts = experiment.method.capabilities.trains == "experts"
    return experiment.recipe.federation.aggregation if trains_experts else "per-expert"


def _shapes(state: ServerState) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in state.tensors.items()}
