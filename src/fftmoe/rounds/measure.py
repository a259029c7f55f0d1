"""What a run is judged by: the global model at every tier, every client's share of it, and clients alone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.client.compress import split_state
from fftmoe.client.runtime import ClientStates
from fftmoe.data import Examples
from fftmoe.engines.base import Engine
from fftmoe.evaluate import Tally, holdout, mean_and_worst_decile, tally
from fftmoe.records import ServerState, Training
from fftmoe.rounds.exchange import Ledger, expectations
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import Experiment
from fftmoe.setup.finished import generation_sample
from fftmoe.trained.generate import generation_metrics

ROWS_AT_ONCE = 4096  # of clients' shares of strata
CLIENTS_KEPT = 200  # one by one; of more, their percentiles


def measure(experiment: Experiment, state: ServerState, sample: Examples, states: ClientStates) -> dict[str, Any]:
    """What is known after a round: everything after the last, the task's metrics on `sample` when due, else nothing."""
    recipe = experiment.recipe
    if state.round == recipe.federation.rounds:
        return final_metrics(experiment, state, states)
    # Measuring every client's own model takes a pass for each, and is left to the end.
    if state.round % recipe.evaluation.every or experiment.method.capabilities.personal:
        return {}
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    return _tally(experiment, sample).metrics()


def final_metrics(experiment: Experiment, state: ServerState, states: ClientStates) -> dict[str, Any]:
    """The global model, or the mean of the clients' own where there is none; and, if asked for, both."""
    evaluation, metric = experiment.recipe.evaluation, experiment.task.metric
    if experiment.method.capabilities.personal:
        return personal_metrics(experiment, state, states)
    metrics = global_metrics(experiment, state)
    if evaluation.personal:
        own = personal_metrics(experiment, state, states)[f"client_{metric}"]
        _, same_rows = _as_each_tier(experiment, state, _personal_sample(experiment))
        same_clients = list(_chosen(experiment, evaluation.personal_clients))
        shared = {f"global_{name}": value for name, value in _spread(experiment, same_rows[same_clients]).items()}
        metrics[f"personal_{metric}"] = {**own, **shared}
    if (sample := generation_sample(experiment.recipe)) is not None:
        experiment.method.install(experiment.model, state.tensors, experiment.largest)
        metrics |= generation_metrics(experiment.model, experiment.recipe.backbone.model, experiment.test, sample)
    return metrics


def global_metrics(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The global model at each tier's budget, on the whole test set."""
    by_tier, per_client = _as_each_tier(experiment, state, experiment.test)
    metric = experiment.task.metric
    one_by_tier = {name: metrics[metric] for name, metrics in by_tier.items()}
    overall = {**by_tier[experiment.largest.name], f"{metric}_by_tier": one_by_tier}
    if np.isnan(per_client).all():  # whose data is what is unknown, or no test row is like any client's
        return overall
    each = _each_client(experiment, range(experiment.num_clients), per_client)
    return {**overall, f"client_{metric}": _spread(experiment, per_client), **each}


def _as_each_tier(
    experiment: Experiment, state: ServerState, examples: Examples
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """The global model's metrics by tier, and every client's at its tier on its own mix, float64 [clients]."""
    by_tier, per_client = {}, np.full(experiment.num_clients, np.nan)
    for tier in experiment.tiers:
        experiment.method.install(experiment.model, state.tensors, tier)
        found = _tally(experiment, examples)
        by_tier[tier.name] = found.metrics()
        if experiment.remote:
            continue  # who holds which labels is for nobody to know
        members = experiment.budgets.members(tier)
        per_client[members] = _on_own_mixes(experiment, found)[members]
    return by_tier, per_client


def _tally(experiment: Experiment, examples: Examples) -> Tally:
    """Of the model as it is now."""
    return tally(experiment.model, experiment.task, examples, len(experiment.strata))


def _spread(experiment: Experiment, values: np.ndarray) -> dict[str, float]:
    return mean_and_worst_decile(values, experiment.task.higher_is_better)


def _each_client(experiment: Experiment, clients: Sequence[int], values: np.ndarray) -> dict[str, Any]:
    """`clients` of the summary, for the report: each one's value and tier, or percentiles; nothing of a private run."""
    if experiment.recipe.privacy is not None:
        return {}
    known = ~np.isnan(values)
    if len(values) > CLIENTS_KEPT:
        return {"clients": {"percentiles": np.percentile(values[known], range(101)).round(4).tolist()}}
    own = [round(float(value), 4) if is_known else None for value, is_known in zip(values, known, strict=True)]
    return {"clients": {"tier": [experiment.budgets[c].name for c in clients], experiment.task.metric: own}}


def _on_own_mixes(experiment: Experiment, found: Tally) -> np.ndarray:
    """What the statistics come to on each client's own mix of strata, float64 [clients]."""
    labels, num_strata = experiment.train.labels.numpy(), len(experiment.strata)
    everyone = range(experiment.num_clients)
    # Part by part: the shares of very many clients would take more memory than the model.
    parts = (everyone[start : start + ROWS_AT_ONCE] for start in everyone[::ROWS_AT_ONCE])
    shares = (experiment.partition.label_distribution(labels, num_strata, part) for part in parts)
    return np.concatenate([found.on_mixes(part) for part in shares])


def _chosen(experiment: Experiment, num_clients: int | None) -> tuple[int, ...]:
    """A fixed random sample of so many clients, ascending; everyone when None or more than there are."""
    population = experiment.num_clients
    return choose_cohort(population, min(population, num_clients or population), experiment.recipe.seed, round=0)


def _personal_sample(experiment: Experiment) -> Examples:
    return holdout(experiment.test, experiment.recipe.evaluation.personal_examples, experiment.recipe.seed)


def personal_metrics(experiment: Experiment, state: ServerState, states: ClientStates) -> dict[str, Any]:
    """Clients' own models (what each downloads, with what it keeps), on a sample of the test set.

    The task's metrics are their mean on the whole sample, `client_…` is on each client's own mix of strata.
    """
    method, recipe, metric = experiment.method, experiment.recipe, experiment.task.metric
    sample = _personal_sample(experiment)
    labels, num_strata = experiment.train.labels.numpy(), len(experiment.strata)
    chosen = _chosen(experiment, recipe.evaluation.personal_clients)
    plan = plan_round(method, state, state.round, chosen, experiment.budgets, experiment.training, recipe.seed)
    overall: list[dict[str, float]] = []
    own = np.zeros(len(chosen))
    for place, client in enumerate(plan.clients):
        c = client.client_id
        kept, _ = split_state(states.load(c, before=state.round + 1))
        method.personalize(experiment.model, method.download(state, client), client, kept)
        found = _tally(experiment, sample)
        overall.append(found.metrics())
        shares = experiment.partition.label_distribution(labels, num_strata, range(c, c + 1))
        own[place] = found.on_mixes(shares)[0]
    values = {name: np.array([metrics[name] for metrics in overall]) for name in overall[0]}
    places = {tier.name: np.flatnonzero(np.isin(chosen, experiment.budgets.members(tier))) for tier in experiment.tiers}
    return {
        **{name: float(each.mean()) for name, each in values.items()},
        f"{metric}_by_tier": {name: float(values[metric][at].mean()) for name, at in places.items() if len(at)},
        f"client_{metric}": _spread(experiment, own),
        **_each_client(experiment, chosen, own),
    }


def local_only(experiment: Experiment, state: ServerState, engine: Engine) -> dict[str, Any]:
    """What each client reaches alone from the initial `state`, with the compute it spends in the federation.

    The run's metric on a common sample of the test set (`local_only_…`), and on each one's own mix of strata
    (`local_only_client_…`), as `client_…` is. Clients without a usable answer are left out, and named in
    `local_only_faults`.
    """
    federation, method = experiment.recipe.federation, experiment.method
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    training = _repeat(experiment.training, rounds_each)
    seed, chosen = experiment.recipe.seed, _chosen(experiment, experiment.recipe.evaluation.local_only_clients)
    plan = plan_round(method, state, 0, chosen, experiment.budgets, training, seed, task="alone")
    ledger, download = Ledger(), partial(method.download, state)
    updates = ledger.exchange(engine, plan, download, expectations(experiment), lambda _: None)
    metrics = [update.metrics for update in updates]
    metric = experiment.task.metric
    own = np.array([m[f"own_{metric}"] for m in metrics if f"own_{metric}" in m])
    result: dict[str, Any] = {}
    if metrics:
        everywhere = _spread(experiment, np.array([m[f"holdout_{metric}"] for m in metrics]))
        result[f"local_only_{metric}"] = {**everywhere, "num_clients": len(metrics)}
    if len(own):
        result[f"local_only_client_{metric}"] = _spread(experiment, own)
    if ledger.new_faults:
        result["local_only_faults"] = [fault._asdict() for fault in ledger.new_faults]
    return result


def _repeat(training: Training, times: float) -> Training:
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
