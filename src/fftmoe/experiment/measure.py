"""What a run is judged by: the global model at every tier, every client's share of it, and clients alone."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fftmoe.data import TokenizedText
from fftmoe.engines.base import Engine
from fftmoe.evaluate import accuracy, accuracy_by_class, client_accuracies, mean_and_worst_decile, predict_logits
from fftmoe.experiment.compose import Experiment
from fftmoe.experiment.ledger import Ledger
from fftmoe.records import ServerState, Training
from fftmoe.server.rounds import choose_cohort, plan_round


def measure(experiment: Experiment, state: ServerState, sample: TokenizedText) -> dict[str, Any]:
    """What is known after a round: everything after the last, accuracy on `sample` when due, else nothing."""
    recipe = experiment.recipe
    if state.round == recipe.federation.rounds:
        return final_metrics(experiment, state)
    if state.round % recipe.evaluation.every:
        return {}
    experiment.method.install(experiment.model, state.tensors, experiment.largest)
    return {"accuracy": accuracy(experiment.model, sample)}


def final_metrics(experiment: Experiment, state: ServerState) -> dict[str, Any]:
    """The global model with all experts at each tier's top_k, on the whole test set."""
    labels, num_labels = experiment.test.labels, len(experiment.label_names)
    distribution = experiment.partition.label_distribution(experiment.train.labels.numpy(), num_labels)
    by_tier, per_client = {}, np.full(experiment.num_clients, np.nan)
    for tier in experiment.tiers:
        experiment.method.install(experiment.model, state.tensors, tier)
        predicted = predict_logits(experiment.model, experiment.test).argmax(1)
        by_tier[tier.name] = float((predicted == labels).double().mean())
        members = [c for c, budget in experiment.budgets.items() if budget == tier]
        by_class = accuracy_by_class(predicted, labels, num_labels)
        per_client[members] = client_accuracies(by_class, distribution)[members]
    return {
        "accuracy": by_tier[experiment.largest.name],
        "accuracy_by_tier": by_tier,
        "client_accuracy": mean_and_worst_decile(per_client),
    }


def local_only(experiment: Experiment, state: ServerState, engine: Engine) -> dict[str, float]:
    """What each client reaches alone from the initial `state`, with the compute it spends in the federation."""
    federation, method = experiment.recipe.federation, experiment.method
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    training = _repeat(experiment.training, rounds_each)
    seed, population = experiment.recipe.seed, experiment.num_clients
    num_clients = min(population, experiment.recipe.evaluation.local_only_clients or population)
    # Round 0 marks training alone: the client keeps no state and measures its own model.
    chosen = choose_cohort(population, num_clients, seed, round=0)
    plan = plan_round(method, state, 0, chosen, experiment.budgets, training, seed)
    updates = Ledger().exchange(engine, plan, partial(method.download, state), lambda _: None)
    accuracies = [update.metrics["holdout_accuracy"] for update in updates]
    return {**mean_and_worst_decile(accuracies), "num_clients": num_clients}


def _repeat(training: Training, times: float) -> Training:
    if training.local_steps is not None:
        return replace(training, local_steps=max(1, round(training.local_steps * times)))
    return replace(training, local_epochs=max(1, round((training.local_epochs or 1) * times)))
