"""Says whether and how much the clients of an experiment train for themselves after the last round, and starts it."""

from collections.abc import Callable, Mapping
from typing import Any

from fftmoe.engines.base import Engine
from fftmoe.records import ServerState, Training
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.rounds.local_training import repeated
from fftmoe.rounds.measure import CLIENTS_KEPT, ModelMeasure
from fftmoe.rounds.own_training import OwnTraining
from fftmoe.setup.baselines import steps_of_epoch
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.tiers import schedule_of


def training_of_own(experiment: Experiment) -> Training | None:
    """Return the training of a client for itself, at the rates of a whole run; None where clients do none.

    Sites train only within the rounds of a run, and of more clients than are listed nobody would see what they gain.
    """
    recipe = experiment.recipe
    federation, part = recipe.federation, recipe.federation.own_training
    if part is None or experiment.remote or experiment.num_clients > CLIENTS_KEPT:
        return None
    rounds_each = federation.rounds * federation.clients_per_round / experiment.num_clients
    return schedule_of(recipe).over_run(repeated(experiment.training, part * rounds_each))


def steps_of_own(experiment: Experiment) -> int:
    """Return the steps that all clients train for themselves; 0 where they do not."""
    training = training_of_own(experiment)
    if training is None:
        return 0
    return round(
        experiment.num_clients * (training.local_steps or (training.local_epochs or 1) * steps_of_epoch(experiment))
    )


def train_for_themselves(
    experiment: Experiment,
    measure: ModelMeasure,
    kept: ServerState,
    engine: Engine,
    metrics: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Let every client train its own part, where the recipe asks for it.

    Args:
        kept: the state that the run keeps. metrics: of it. say: shows a line.

    Returns:
        what `OwnTraining` returns, `personal_by_client` by the names of clients; nothing where clients do not train.
    """
    training = training_of_own(experiment)
    if training is None:
        return {}
    say("training a part for each client itself, from the model that the run keeps")
    exchange = Exchange(engine, expectations(experiment), Ledger())
    train = OwnTraining(measure, exchange, training, experiment.recipe.seed)
    found = train(kept, metrics.get("clients", {}))
    clients = experiment.named_clients
    return {**found, "personal_by_client": {clients[n]: own for n, own in found["personal_by_client"].items()}}
