"""Decides from a recipe's `privacy` section how the rounds of a private run are merged."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.config import PrivacySection
from fftmoe.errors import InputError
from fftmoe.methods.private import holders
from fftmoe.records import Release, ServerState
from fftmoe.rounds.example_cost import ExampleCost, ExampleRule
from fftmoe.rounds.private import CLIENT_ADJACENCY, NoiseRule, NoisySums, PrivateMerging, SumsOnly, SumsRule
from fftmoe.server.accountant import accounting, calibrate
from fftmoe.setup.experiment import Experiment
from fftmoe.shown import count_of
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger, Spent
from fftmoe.strict import exact_json


def private_merging(experiment: Experiment, initial: ServerState, folder: Path, resumed: bool) -> PrivateMerging | None:
    """Make the merging that the recipe asks for; None where it asks for no privacy. Nothing is written yet.

    Args:
        folder: the run's. resumed: whether the run has spent something already.

    Raises:
        InputError: a library is missing, the recipe cannot be honoured, or what was spent cannot be read.
    """
    settings = experiment.recipe.privacy
    if settings is None:
        return None
    if settings.noisy or settings.examples is not None:
        accounting()  # so that a missing library is found now, not after the first round
    if settings.noisy:
        ledger = PrivacyLedger(folder)
        spent = _continued(ledger.read(), settings) if resumed else _first_spent(experiment, settings)
        return _noisy_sums(experiment, settings, initial, spent, ledger)
    cost = _example_cost(experiment, settings, folder, resumed)
    most = math.inf if settings.clip_norm is None else settings.clip_norm
    return SumsOnly(experiment.method, _rule(experiment, settings, most), cost)


def _example_cost(experiment: Experiment, settings: PrivacySection, folder: Path, resumed: bool) -> ExampleCost | None:
    own, federation = settings.examples, experiment.recipe.federation
    if own is None:
        return None
    rate = sampling_rate(federation.batch_size, max(1, experiment.fewest_examples))
    rule = ExampleRule(
        population=population_of(experiment.partition.names),
        release=Release(rate, own.noise_multiplier, federation.local_steps or 0),
        delta=own.delta,
        epsilon=own.epsilon,
        fewest_examples=experiment.fewest_examples,
    )
    ledger = AskedLedger(folder)
    return ExampleCost(rule, ledger, ledger.read() if resumed else ())


def population_of(names: Sequence[str]) -> str:
    """Identify the clients behind the ids 0, 1, …: the SHA-256 of their names, in this order."""
    return hashlib.sha256(exact_json(list(names)).encode()).hexdigest()


def _noisy_sums(
    experiment: Experiment, settings: PrivacySection, initial: ServerState, spent: Spent, ledger: PrivacyLedger
) -> NoisySums:
    federation, everyone = experiment.recipe.federation, experiment.num_clients
    counts = holders(experiment.method, initial, experiment.budgets, experiment.training)
    noise = NoiseRule(
        sampling_rate=_sampling_rate(experiment),
        delta=_delta(experiment, settings),
        epsilon=settings.epsilon,
        expected={name: count * federation.clients_per_round / everyone for name, count in counts.items()},
        clients_per_round=federation.clients_per_round,
        clip_quantile=settings.clip_quantile,
    )
    return NoisySums(experiment.method, _rule(experiment, settings, math.inf), noise, everyone, spent, ledger)


def _first_spent(experiment: Experiment, settings: PrivacySection) -> Spent:
    """Return what a run has spent before its first round: nothing, with the noise stated or found for all rounds.

    Raises:
        InputError: there is no such noise, or `dp-accounting` is missing.
    """
    assert settings.clip_norm is not None
    delta, z = _delta(experiment, settings), settings.noise_multiplier
    if z is None:
        assert settings.epsilon is not None
        z = calibrate(
            _sampling_rate(experiment), settings.epsilon, delta, experiment.recipe.federation.rounds, CLIENT_ADJACENCY
        )
    return Spent(noise_multiplier=z, clip_norm=settings.clip_norm)


def _continued(spent: Spent, settings: PrivacySection) -> Spent:
    """Return what a run has spent, with the noise and the bound that its recipe states now.

    Noise that was found for all rounds stays, and so does a bound that follows the clients' norms.
    """
    noise = settings.noise_multiplier or spent.noise_multiplier
    return replace(spent, noise_multiplier=noise, clip_norm=settings.clip_by_clients or spent.clip_norm)


def _sampling_rate(experiment: Experiment) -> float:
    """Return q, with which `clients_per_round` clients are in a round on average."""
    return experiment.recipe.federation.clients_per_round / experiment.num_clients


def _delta(experiment: Experiment, settings: PrivacySection) -> float:
    assert settings.delta is not None
    if settings.delta >= 1 / experiment.num_clients:
        raise InputError(
            f"privacy.delta={settings.delta:g} would allow the run to reveal one of "
            f"{count_of(experiment.num_clients, 'client')} entirely; set it well below {1 / experiment.num_clients:.2g}"
        )
    return settings.delta


def _rule(experiment: Experiment, settings: PrivacySection, clip_norm: float) -> SumsRule:
    """Return the rule by which the server forms sums. Tensors of no expert are averaged over the clients that sent
    them.
    """
    trains_experts = experiment.method.capabilities.trains == "experts"
    kind = experiment.recipe.federation.aggregation if trains_experts else "per-expert"
    return SumsRule(settings.min_contributors, kind, clip_norm)
