"""Measures the baselines of a run: which of them are possible, and what they reach beside its result."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.config.evaluation import BASELINES
from fftmoe.cost.analytic import BaselineCost
from fftmoe.data import Partition, Ragged
from fftmoe.engines.base import Engine
from fftmoe.engines.local import InProcess
from fftmoe.evaluate import holdout
from fftmoe.head import HeadSums, bounded_total
from fftmoe.methods.budget import Budgets
from fftmoe.records import ServerState, Training, names
from fftmoe.rounds.baselines import (
    HEAD_ONLY,
    BeforeRounds,
    HeadAlone,
    baseline,
    head_only_of,
    no_baseline,
    nothing_before,
)
from fftmoe.rounds.before_and_after import STARTS, before_and_after, samples_of, scores_of
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.rounds.local_training import Alone, LocalTraining, repeated
from fftmoe.rounds.measure import ModelMeasure
from fftmoe.rounds.own_data import own_data
from fftmoe.rounds.population import Population
from fftmoe.server.apply import Counted
from fftmoe.server.solve import plan_sums, solve_head
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_answers
from fftmoe.setup.method import build_method
from fftmoe.setup.tiers import schedule_of

_, ALONE, CENTRALIZED = BASELINES  # the first one is `HEAD_ONLY`


def why_not(experiment: Experiment) -> dict[str, str | None]:
    """Return why each baseline is not measured in a run of this experiment; None for those that are."""
    reasons = {HEAD_ONLY: _no_head_only, ALONE: _no_alone, CENTRALIZED: _no_centralized}
    asked = experiment.recipe.evaluation.asked
    return {
        name: reasons[name](experiment) or (None if name in asked else f"evaluation.baselines does not name {name}")
        for name in BASELINES
    }


def _no_head_only(experiment: Experiment) -> str | None:
    recipe, capabilities = experiment.recipe, experiment.method.capabilities
    if recipe.backbone.is_language or _starts_alone(experiment):
        return None  # it is the model of round 0, or needs no head
    if recipe.privacy is not None:
        return "with privacy clients send feature statistics only for a closed-form head, and this run has another"
    if experiment.remote:
        return "sites send feature statistics only for the head of the run, and this run does not begin with it alone"
    if not capabilities.shares_statistics:
        return f"with the method {recipe.method} clients share no feature statistics from which a head could be solved"
    if names.HEAD_WEIGHT not in experiment.method.init(experiment.model).tensors:
        return "the head has several layers, and only a single linear layer can be solved"
    return None


def _starts_alone(experiment: Experiment) -> bool:
    """Return whether the state before the first round is the backbone with nothing but its head, or without any."""
    recipe = experiment.recipe
    return experiment.start is None and (recipe.closed_form is not None or recipe.backbone.is_language)


def _no_alone(experiment: Experiment) -> str | None:
    recipe, capabilities = experiment.recipe, experiment.method.capabilities
    if experiment.remote:
        return "sites train only within the rounds of a run"
    if recipe.differential:
        return "it measures clients' own models, which the guarantee of differential privacy does not cover"
    if recipe.privacy is not None and not recipe.evaluation.local_only:
        return "it measures single clients, and with privacy the server keeps only sums over them"
    if capabilities.pools_data or experiment.num_clients == 1:
        return "there is one client only, which holds all rows"
    shares_nothing = capabilities.personal and not capabilities.shares_statistics
    if shares_nothing and not recipe.evaluation.local_only:
        return "the result of this method is that of clients that train by themselves"
    return None


def _no_centralized(experiment: Experiment) -> str | None:
    recipe, capabilities = experiment.recipe, experiment.method.capabilities
    if experiment.remote:
        return "the rows stay at the sites"
    if recipe.differential:
        return "it trains on all rows without noise, which the guarantee of differential privacy does not cover"
    if recipe.privacy is not None:
        return "it trains on all rows in one place, and with privacy the server keeps only sums over clients"
    if capabilities.pools_data or experiment.num_clients == 1:
        return "the result is that of one client, which holds all rows"
    return None


def make_head_alone(
    experiment: Experiment, measure: ModelMeasure, exchange: Exchange, more: Callable[[], dict[str, Any]] = dict
) -> BeforeRounds:
    """Make what measures the head alone before the first round, where the recipe asks for it and it is possible.

    Args:
        more: what else is measured of this model.
    """
    if why_not(experiment)[HEAD_ONLY] is not None:
        return nothing_before
    recipe = experiment.recipe
    sample = holdout(experiment.test, recipe.evaluation.max_examples, recipe.seed)
    solve = partial(_solve, experiment, replace(exchange, ledger=Ledger()))
    if recipe.backbone.is_language:
        solve = _as_it_is
    return HeadAlone(measure, solve, _starts_alone(experiment), sample, more)


def _as_it_is(state: ServerState) -> ServerState | None:
    return state


def _solve(experiment: Experiment, exchange: Exchange, state: ServerState) -> ServerState | None:
    """Return the state with a head solved from the feature statistics of all clients that answer; None if none does."""
    plan = plan_sums(
        state, range(experiment.num_clients), experiment.largest, experiment.training, experiment.recipe.seed
    )
    updates = Counted(exchange.updates(plan, partial(experiment.method.download, state)))
    first = next(updates, None)
    if first is None:
        return None
    total: Callable[[Iterable[HeadSums]], HeadSums] = (
        HeadSums.total if experiment.recipe.robustness is None else bounded_total
    )
    return solve_head(state, itertools.chain((first,), updates), total, make_answers(experiment.recipe))


def measure_baselines(
    experiment: Experiment,
    measure: ModelMeasure,
    initial: ServerState,
    engine: Engine,
    first_row: Mapping[str, Any],
    metrics: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the baselines that are left after the rounds.

    Args:
        measure: what the run is measured with. initial: the state before the first round.
        first_row: of `metrics.jsonl`. metrics: of the run's result.
        say: shows a line.

    Returns:
        `baselines` of the summary, the further values of training alone, `clients` with these beside the others, and
        `own_data`.
    """
    reasons, metric = why_not(experiment), experiment.task.metric
    entries = {name: no_baseline(reason) for name, reason in reasons.items() if reason is not None}
    found: dict[str, Any] = {}
    alone = None
    if HEAD_ONLY not in entries:
        entries[HEAD_ONLY] = head_only_of(first_row, metric)
    if ALONE not in entries:
        say("training clients locally, for comparison")
        alone = train_locally(experiment, measure, initial, engine)
        entries[ALONE] = _entry(alone)
        found |= {**alone.metrics, **_beside(metrics, alone, experiment.num_clients)}
    if CENTRALIZED not in entries:
        say("training on the rows of all clients together, for comparison")
        entries[CENTRALIZED] = _entry(train_together(experiment, measure, initial))
    by_client = _before_and_after(experiment, first_row, metrics, alone)
    listed = found.get("clients", metrics.get("clients", {}))
    has_common = not experiment.method.capabilities.personal
    own = own_data(listed, measure.key_of_own, experiment.task.higher_is_better, has_common)
    return {
        **found,
        **by_client,
        **({"own_data": own} if own else {}),
        "baselines": {name: entries[name] for name in BASELINES},
    }


def _before_and_after(
    experiment: Experiment, first_row: Mapping[str, Any], metrics: Mapping[str, Any], alone: Alone | None
) -> dict[str, Any]:
    """Return what a language model reaches and writes on each client's own rows,
    if that was measured before the rounds.
    """
    metric, found = experiment.task.metric, dict[str, Any]()
    listed = metrics.get("clients", {}).get(metric, ())
    if STARTS in first_row and len(listed) == experiment.num_clients:
        clients = experiment.named_clients
        together = scores_of(metric, clients, listed, metrics.get("generated_by_client", {}))
        by_themselves: dict[str, dict[str, float]] = {}
        if alone is not None:
            own = [alone.own.get(client) for client in range(len(clients))]
            written = {clients[client]: scores for client, scores in alone.written.items()}
            by_themselves = scores_of(metric, clients, own, written)
        own = metrics.get("personal_by_client")
        found["before_and_after"] = before_and_after(first_row, together, by_themselves, own)
    return {**found, "samples": samples_of(first_row, metrics)} if "samples" in metrics else found


def baseline_costs(experiment: Experiment) -> dict[str, BaselineCost]:
    """Return what each baseline costs in addition to the run, by name."""
    reasons = why_not(experiment)
    costs = {name: BaselineCost(reason) for name, reason in reasons.items() if reason is not None}
    if HEAD_ONLY not in costs:
        costs[HEAD_ONLY] = BaselineCost(None, statistics=0 if _starts_alone(experiment) else experiment.num_clients)
    if ALONE not in costs:
        clients = min(experiment.num_clients, experiment.recipe.evaluation.local_only_clients or experiment.num_clients)
        training = training_alone(experiment)
        steps = training.local_steps or (training.local_epochs or 1) * steps_of_epoch(experiment)
        costs[ALONE] = BaselineCost(None, clients=clients, steps=round(clients * steps))
    if CENTRALIZED not in costs:
        costs[CENTRALIZED] = BaselineCost(None, clients=1, steps=training_together(experiment).local_steps or 0)
    return {name: costs[name] for name in BASELINES}


def steps_of_epoch(experiment: Experiment) -> float:
    """Return the steps that an average client takes to see each of its rows once."""
    rows = len(experiment.partition.indices.flat) / experiment.num_clients
    return rows / experiment.training.batch_size


def _entry(found: Alone) -> dict[str, Any]:
    if found.value is None:
        return no_baseline("no client gave a valid answer")
    return baseline(found.value, found.interval)


def _beside(metrics: Mapping[str, Any], alone: Alone, num_clients: int) -> dict[str, Any]:
    """Return the summary's list of clients with the value that each reaches by itself."""
    listed = metrics.get("clients", {})
    if len(listed.get("tier", ())) != num_clients:  # percentiles, or a sample of the clients
        return {}
    own = [round(alone.own[client], 4) if client in alone.own else None for client in range(num_clients)]
    return {"clients": {**listed, "alone": own}}


def train_locally(experiment: Experiment, measure: ModelMeasure, initial: ServerState, engine: Engine) -> Alone:
    """Train clients without the federation, each as much as it does in the run on average."""
    local = LocalTraining(
        measure=measure,
        exchange=Exchange(engine, expectations(experiment), Ledger()),
        training=training_alone(experiment),
        seed=experiment.recipe.seed,
        num_clients=experiment.recipe.evaluation.local_only_clients,
    )
    return local(initial)


def training_alone(experiment: Experiment) -> Training:
    """Return the training of one client for as many rounds as it takes part in on average, at their rates."""
    federation = experiment.recipe.federation
    training = repeated(experiment.training, federation.rounds * federation.clients_per_round / experiment.num_clients)
    return schedule_of(experiment.recipe).over_run(training)


def train_together(experiment: Experiment, measure: ModelMeasure, initial: ServerState) -> Alone:
    """Train one client of the largest tier on the rows of all clients, as much as they all train in the run."""
    pooled = one_client(experiment)
    population = Population(pooled.budgets, pooled.budgets.tiers, measure.population.label_shares)
    spec = replace(client_spec(pooled, NoStates()), holdout=experiment.test)
    together = LocalTraining(
        measure=replace(measure, method=pooled.method, population=population, own_test=None),
        exchange=Exchange(InProcess(build_client(spec, experiment.model)), expectations(pooled), Ledger()),
        training=training_together(experiment),
        seed=experiment.recipe.seed,
    )
    return together(initial)


def one_client(experiment: Experiment) -> Experiment:
    """Return the experiment of one client that has the rows of all."""
    rows = np.sort(experiment.partition.indices.flat)
    budgets = Budgets.of((experiment.largest,), np.zeros(1, dtype=np.int64))
    # A client of each tier is added: methods with one rank for all clients take that of the smallest tier.
    everyone = dict(enumerate((experiment.largest, *experiment.tiers)))
    return replace(
        experiment,
        partition=Partition(Ragged.of([rows])),
        budgets=budgets,
        method=build_method(experiment.recipe, experiment.model, experiment.shape, everyone, experiment.plugins),
        sizes=np.array([len(rows)]),
        own_test=None,
    )


def training_together(experiment: Experiment) -> Training:
    """Return the training of one client that takes as many steps as all clients take in all rounds, at their rates."""
    federation, training = experiment.recipe.federation, experiment.training
    steps: float | None = training.local_steps
    if steps is None:
        steps = (training.local_epochs or 1) * steps_of_epoch(experiment)
    total = max(1, round(steps * federation.rounds * federation.clients_per_round))
    return schedule_of(experiment.recipe).over_run(replace(training, local_steps=total, local_epochs=None))
