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
from fftmoe.experiment.ledger import Ledger
from fftmoe.records import ServerState, Training
from fftmoe.server.rounds import choose_cohort, plan_round


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
        shared = {f"global_{name}": value for name, value in mean_and_worst_decile(same_rows).items()}
        metrics["personal_accuracy"] = {**own, **shared}
    return metrics


def global_metrics(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The global model at each tier's budget, on the whole test set."""
    by_tier, per_client = _as_each_tier(experiment, state, experiment.test)
    return {
        "accuracy": by_tier[experiment.largest.name],
        "accuracy_by_tier": by_tier,
        "client_accuracy": mean_and_worst_decile(per_client),
    }


def _as_each_tier(
    experiment: Experiment, state: ServerState, examples: Examples
) -> tuple[dict[str, float], np.ndarray]:
    """Accuracy of the global model by tier, and of every client at its tier on its own label mix, float64 [clients]."""
    labels, num_labels = examples.labels, len(experiment.label_names)
    distribution = experiment.partition.label_distribution(experiment.train.labels.numpy(), num_labels)
    by_tier, per_client = {}, np.full(experiment.num_clients, np.nan)
    for tier in experiment.tiers:
        experiment.method.install(experiment.model, state.tensors, tier)
        predicted = predict_logits(experiment.model, examples).argmax(1)
        by_tier[tier.name] = float((predicted == labels).double().mean())
        members = [c for c, budget in experiment.budgets.items() if budget == tier]
        by_class = accuracy_by_class(predicted, labels, num_labels)
        per_client[members] = client_accuracies(by_class, distribution)[members]
    return by_tier, per_client


def _personal_sample(experiment: Experiment) -> Examples:
    return holdout(experiment.test, experiment.recipe.evaluation.personal_examples, experiment.recipe.seed)


def personal_metrics(experiment: Experiment, state: ServerState, states: ClientStates) -> dict[str, Any]:
    """Every client's own model (what it downloads, with what it keeps), on a sample of the test set.

    `accuracy` is their mean on the whole sample, `client_accuracy` is on each client's own label mix.
    """
    method, recipe = experiment.method, experiment.recipe
    sample = _personal_sample(experiment)
    num_labels = len(experiment.label_names)
    distribution = experiment.partition.label_distribution(experiment.train.labels.numpy(), num_labels)
    everyone = range(experiment.num_clients)
    plan = plan_round(method, state, state.round, everyone, experiment.budgets, experiment.training, recipe.seed)
    overall, own = np.zeros(len(everyone)), np.zeros(len(everyone))
    for client in plan.clients:
        c = client.client_id
        method.personalize(experiment.model, method.download(state, client), client, split_state(states.load(c))[0])
        predicted = predict_logits(experiment.model, sample).argmax(1)
        overall[c] = float((predicted == sample.labels).double().mean())
        by_class = accuracy_by_class(predicted, sample.labels, num_labels)
        own[c] = client_accuracies(by_class, distribution[[c]])[0]
    members = {
        tier.name: [c for c, budget in experiment.budgets.items() if budget == tier] for tier in experiment.tiers
    }
    return {
        "accuracy": float(overall.mean()),
        "accuracy_by_tier": {name: float(overall[ids].mean()) for name, ids in members.items()},
        "client_accuracy": mean_and_worst_decile(own),
    }


def local_only(experiment: Experiment, state: ServerState, engine: Engine) -> dict[str, dict[str, float]]:
    """What each client reaches alone from the initial `state`, with the compute it spends in the federation.

    `local_only_accuracy` is on a common sample of the test set, `local_only_client_accuracy` on each one's own label
    mix, as `client_accuracy` is.
    """
    federation, method = experiment.recipe.federation, experiment.method
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    # A solved head holds what the others know, so a client that is alone trains one.
    training = replace(_repeat(experiment.training, rounds_each), train_head=True)
    seed, population = experiment.recipe.seed, experiment.num_clients
    num_clients = min(population, experiment.recipe.evaluation.local_only_clients or population)
    chosen = choose_cohort(population, num_clients, seed, round=0)
    plan = plan_round(method, state, 0, chosen, experiment.budgets, training, seed, task="alone")
    updates = Ledger().exchange(engine, plan, partial(method.download, state), lambda _: None)
    metrics = [update.metrics for update in updates]
    own = [m["own_accuracy"] for m in metrics if "own_accuracy" in m]
    everywhere = mean_and_worst_decile([m["holdout_accuracy"] for m in metrics])
    result = {"local_only_accuracy": {**everywhere, "num_clients": num_clients}}
    return {**result, "local_only_client_accuracy": mean_and_worst_decile(own)} if own else result


def _repeat(training: Training, times: float) -> Training:
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
