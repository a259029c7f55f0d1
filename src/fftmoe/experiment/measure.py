"""What a run is judged by: the global model at every tier, every client's share of it, and clients alone."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.client.compress import split_state
from fftmoe.client.runtime import ClientStates
from fftmoe.data import Examples
from fftmoe.engines.base import Engine
from fftmoe.evaluate import accuracy, accuracy_by_class, client_accuracies, mean_and_worst_decile, predict_logits
from fftmoe.experiment.compose import Experiment, holdout
from fftmoe.experiment.ledger import Ledger, expectations
from fftmoe.records import ServerState, Training
from fftmoe.server.rounds import choose_cohort, plan_round

ROWS_AT_ONCE = 4096  # of clients' label shares


def measure(experiment: Experiment, state: ServerState, sample: Examples, states: ClientStates) -> dict[str, Any]:
    """What is known after a round: everything after the last, accuracy on `sample` when due, else nothing."""
    recipe = experiment.recipe
    if state.round == recipe.federation.rounds:
        return final_metrics(experiment, state, states)
    # Measuring every client's own model takes a pass for each, and is left to the end.
    if state.round % recipe.evaluation.every or experiment.method.personal:
        return {}
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    return {"accuracy": accuracy(experiment.model, sample)}


def final_metrics(experiment: Experiment, state: ServerState, states: ClientStates) -> dict[str, Any]:
    """The global model, or the mean of the clients' own where there is none; and, if asked for, both."""
    evaluation = experiment.recipe.evaluation
    if experiment.method.personal:
        return personal_metrics(experiment, state, states)
    metrics = global_metrics(experiment, state)
    if evaluation.personal:
        own = personal_metrics(experiment, state, states)["client_accuracy"]
        _, same_rows = _as_each_tier(experiment, state, _personal_sample(experiment))
        same_clients = list(_chosen(experiment, evaluation.personal_clients))
        shared = {f"global_{name}": value for name, value in mean_and_worst_decile(same_rows[same_clients]).items()}
        metrics["personal_accuracy"] = {**own, **shared}
    return metrics


def global_metrics(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The global model at each tier's budget, on the whole test set."""
    by_tier, per_client = _as_each_tier(experiment, state, experiment.test)
    overall = {"accuracy": by_tier[experiment.largest.name], "accuracy_by_tier": by_tier}
    return overall if experiment.remote else {**overall, "client_accuracy": mean_and_worst_decile(per_client)}


def _as_each_tier(
    experiment: Experiment, state: ServerState, examples: Examples
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy of the global model by tier, and of every client at its tier on its own label mix, float64 [clients]."""
    labels, num_labels = examples.labels, len(experiment.label_names)
    by_tier, per_client = {}, np.full(experiment.num_clients, np.nan)
    for tier in experiment.tiers:
        experiment.method.install(experiment.model, state.tensors, tier)
        predicted = predict_logits(experiment.model, examples).argmax(1)
        by_tier[tier.name] = float((predicted == labels).double().mean())
        if experiment.remote:
            continue  # who holds which labels is for nobody to know
        members = experiment.budgets.members(tier)
        by_class = accuracy_by_class(predicted, labels, num_labels)
        per_client[members] = _on_own_mixes(experiment, by_class)[members]
    return by_tier, per_client


def _on_own_mixes(experiment: Experiment, by_class: np.ndarray) -> np.ndarray:
    """What these accuracies by class, float64 [L], come to on each client's own label mix, float64 [clients]."""
    labels, num_labels = experiment.train.labels.numpy(), len(experiment.label_names)
    everyone = range(experiment.num_clients)
    # Part by part: the label shares of very many clients would take more memory than the model.
    parts = (everyone[start : start + ROWS_AT_ONCE] for start in everyone[::ROWS_AT_ONCE])
    shares = (experiment.partition.label_distribution(labels, num_labels, part) for part in parts)
    return np.concatenate([client_accuracies(by_class, part) for part in shares])


def _chosen(experiment: Experiment, num_clients: int | None) -> tuple[int, ...]:
    """A fixed random sample of so many clients, ascending; everyone when None or more than there are."""
    population = experiment.num_clients
    return choose_cohort(population, min(population, num_clients or population), experiment.recipe.seed, round=0)


def _personal_sample(experiment: Experiment) -> Examples:
    return holdout(experiment.test, experiment.recipe.evaluation.personal_examples, experiment.recipe.seed)


def personal_metrics(experiment: Experiment, state: ServerState, states: ClientStates) -> dict[str, Any]:
    """Clients' own models (what each downloads, with what it keeps), on a sample of the test set.

    `accuracy` is their mean on the whole sample, `client_accuracy` is on each client's own label mix.
    """
    method, recipe = experiment.method, experiment.recipe
    sample = _personal_sample(experiment)
    labels, num_labels = experiment.train.labels.numpy(), len(experiment.label_names)
    chosen = _chosen(experiment, recipe.evaluation.personal_clients)
    plan = plan_round(method, state, state.round, chosen, experiment.budgets, experiment.training, recipe.seed)
    overall, own = np.zeros(len(chosen)), np.zeros(len(chosen))
    for place, client in enumerate(plan.clients):
        c = client.client_id
        kept, _ = split_state(states.load(c, before=state.round + 1))
        method.personalize(experiment.model, method.download(state, client), client, kept)
        predicted = predict_logits(experiment.model, sample).argmax(1)
        overall[place] = float((predicted == sample.labels).double().mean())
        by_class = accuracy_by_class(predicted, sample.labels, num_labels)
        shares = experiment.partition.label_distribution(labels, num_labels, range(c, c + 1))
        own[place] = client_accuracies(by_class, shares)[0]
    places = {tier.name: np.flatnonzero(np.isin(chosen, experiment.budgets.members(tier))) for tier in experiment.tiers}
    return {
        "accuracy": float(overall.mean()),
        "accuracy_by_tier": {name: float(overall[at].mean()) for name, at in places.items() if len(at)},
        "client_accuracy": mean_and_worst_decile(own),
    }


def local_only(experiment: Experiment, state: ServerState, engine: Engine) -> dict[str, Any]:
    """What each client reaches alone from the initial `state`, with the compute it spends in the federation.

    `local_only_accuracy` is on a common sample of the test set, `local_only_client_accuracy` on each one's own label
    mix, as `client_accuracy` is. Clients without a usable answer are left out, and named in `local_only_faults`.
    """
    federation, method = experiment.recipe.federation, experiment.method
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    # A solved head holds what the others know, so a client that is alone trains one.
    training = replace(_repeat(experiment.training, rounds_each), train_head=True)
    seed, chosen = experiment.recipe.seed, _chosen(experiment, experiment.recipe.evaluation.local_only_clients)
    plan = plan_round(method, state, 0, chosen, experiment.budgets, training, seed, task="alone")
    ledger, download = Ledger(), partial(method.download, state)
    updates = ledger.exchange(engine, plan, download, expectations(experiment), lambda _: None)
    metrics = [update.metrics for update in updates]
    own = [m["own_accuracy"] for m in metrics if "own_accuracy" in m]
    result: dict[str, Any] = {}
    if metrics:
        everywhere = mean_and_worst_decile([m["holdout_accuracy"] for m in metrics])
        result["local_only_accuracy"] = {**everywhere, "num_clients": len(metrics)}
    if own:
        result["local_only_client_accuracy"] = mean_and_worst_decile(own)
    if ledger.new_faults:
        result["local_only_faults"] = [fault._asdict() for fault in ledger.new_faults]
    return result


def _repeat(training: Training, times: float) -> Training:
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
