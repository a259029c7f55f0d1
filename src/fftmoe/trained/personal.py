"""A client's personal model: its part of the global model, together with the state that the client has kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fftmoe.client.compress import split_state
from fftmoe.client.runtime import ClientStates
from fftmoe.errors import InputError
from fftmoe.methods.base import Method
from fftmoe.records import Budget, Experts, ServerState, Training
from fftmoe.server.plan import plan_round
from fftmoe.trained.load import use_top_k
from fftmoe.trained.run import TrainedModel


@dataclass(frozen=True)
class FinishedFederation:
    """A finished run with the parts from which the model of every client and tier can be built again.

    Attributes:
        trained: the model, into which a state must be installed before it is used.
        state: the last state of the server; its tensors are those that the run serves.
        tiers: the distinct budgets. budgets: the budget of each client by client_id.
        training: how clients train. seed: of the recipe.
        client_states: what the clients have kept.
        to_units: lets the head of a model, in which a state has been installed, answer in the units of the data.
    """

    trained: TrainedModel
    method: Method
    state: ServerState
    tiers: tuple[Budget, ...]
    budgets: Mapping[int, Budget]
    training: Training
    seed: int
    client_states: ClientStates
    to_units: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class PersonalModel:
    """The model that one client of a finished run uses.

    Attributes:
        trained: the model, which holds only this client's experts.
        budget: of the client's tier. experts: its resident experts by block.
        kept: whether the client has kept a state; otherwise its model is its part of the global model.
    """

    trained: TrainedModel
    budget: Budget
    experts: Experts
    kept: bool


def personal_model(federation: FinishedFederation, client_id: int, top_k: int | None = None) -> PersonalModel:
    """Install a client's own model, as the run's personal metrics measure it, into the model of the federation.

    Args:
        top_k: how many experts a token uses; None keeps the value of the client's tier.

    Raises:
        InputError: there is no such client, or it holds fewer than `top_k` experts.
    """
    method, state, budgets = federation.method, federation.state, federation.budgets
    trained = federation.trained
    if not 0 <= client_id < len(budgets):
        raise InputError(
            f"client {client_id} does not exist: the run in {trained.run.folder} has clients 0 to "
            f"{len(budgets) - 1}; choose one of them"
        )
    cohort = [client_id]
    plan = plan_round(method, state, state.round, cohort, budgets, federation.training, federation.seed).clients[0]
    kept, _ = split_state(federation.client_states.load(client_id, before=state.round + 1))
    method.personalize(trained.model, method.download(state, plan), plan, kept)
    federation.to_units(trained.model)
    use_top_k(trained.model, top_k)
    budget = plan.budget if top_k is None else replace(plan.budget, top_k=top_k)
    return PersonalModel(trained, budget, plan.experts, bool(kept))
