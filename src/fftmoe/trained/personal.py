"""Builds a client's personal model: its part of the global model, together with the state that the client has kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fftmoe.client.compress import split_state
from fftmoe.client.own_part import install_own_part
from fftmoe.client.runtime import ClientStates
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.base import Method
from fftmoe.methods.budget import largest_tier
from fftmoe.records import Budget, Experts, ServerState, Tensors, Training, names
from fftmoe.records.client_names import client_name
from fftmoe.server.plan import plan_round
from fftmoe.trained.load import use_top_k
from fftmoe.trained.prior import OwnAnswer, Prior, make_prior, why_no_prior
from fftmoe.trained.run import TrainedModel


@dataclass(frozen=True)
class FinishedFederation:
    """Holds a finished run with the parts from which the model of every client and tier can be built again.

    Attributes:
        trained: the model, into which a state must be installed before it is used.
        state: the last state of the server; its tensors are those that the run serves.
        tiers: the distinct budgets. budgets: the budget of each client by client_id.
        training: how clients train. seed: of the recipe.
        client_states: what the clients have kept.
        names: of the clients, by client_id, where the data gives them any.
        own_answer: from a client to how it uses the answers of the model as it is now; None where nobody may know.
        keeps_parts: whether clients keep parts of the model that they use.
        own_parts: what clients have trained for themselves after the last round; None where they have not.
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
    names: tuple[str, ...] | None = None
    own_answer: Callable[[int], OwnAnswer] | None = None
    keeps_parts: bool = True
    own_parts: ClientStates | None = None

    def client_id(self, client: int | str) -> int:
        """Return the number of a client that is called by its name or by its number.

        Raises:
            InputError: there is no such client.
        """
        if self.names is not None and client in self.names:
            return self.names.index(str(client))
        number = int(client) if str(client).isdecimal() else -1
        if 0 <= number < len(self.budgets):
            return number
        known = f"clients 0 to {len(self.budgets) - 1}"
        near = did_you_mean(str(client), self.names) if self.names is not None else ""
        raise InputError(
            f"client {client} does not exist: the run in {self.trained.run.folder} has {known}{near}; choose one of "
            "them"
        )


@dataclass(frozen=True)
class PersonalModel:
    """Holds the model that one client of a finished run uses.

    Attributes:
        trained: the model, which holds only this client's experts.
        budget: of the client's tier. experts: its resident experts by block.
        kept: whether the client has kept a state; otherwise its model is its part of the global model.
        client_id: its number. name: that the data gives it, or else its number.
        prior: how often labels occur among its rows, for which the answers of its model are to be corrected; None where
            nobody knows.
        part: what is to be added to the head of the model for these answers; None for nothing.
    """

    trained: TrainedModel
    budget: Budget
    experts: Experts
    kept: bool
    client_id: int
    name: str
    prior: Prior | None = None
    part: Tensor | None = None


def personal_model(federation: FinishedFederation, client: int | str, top_k: int | None = None) -> PersonalModel:
    """Install a client's own model, as the run's personal metrics measure it, into the model of the federation.

    Args:
        client: its name or its number. top_k: how many experts a token uses; None keeps the value of the client's tier.

    Raises:
        InputError: there is no such client, or it holds fewer than `top_k` experts.
    """
    method, state, budgets = federation.method, federation.state, federation.budgets
    trained = federation.trained
    client_id = federation.client_id(client)
    cohort = [client_id]
    plan = plan_round(method, state, state.round, cohort, budgets, federation.training, federation.seed).clients[0]
    kept, _ = split_state(federation.client_states.load(client_id, before=state.round + 1))
    own = _own_part(federation, client_id)
    install_own_part(trained.model, method, plan, method.download(state, plan), kept, own)
    federation.to_units(trained.model)
    use_top_k(trained.model, top_k)
    budget = plan.budget if top_k is None else replace(plan.budget, top_k=top_k)
    name = client_name(client_id, federation.names)
    prior, part = own_answer_of(federation, client_id)
    return PersonalModel(trained, budget, plan.experts, bool(kept or own), client_id, name, prior, part)


def _own_part(federation: FinishedFederation, client_id: int) -> Tensors:
    """Return what a client has trained for itself, by name; nothing where it does better without."""
    if federation.own_parts is None:
        return {}
    found = federation.own_parts.load(client_id, before=federation.state.round + 1)
    return {name: tensor for name, tensor in found.items() if name != names.OWN_MARGIN}


def common_model(
    federation: FinishedFederation, client_id: int | None = None, top_k: int | None = None
) -> TrainedModel:
    """Install the global model, as the tier of a client uses it, into the model of the federation.

    Args:
        client_id: the client; None for the largest tier.
        top_k: how many experts a token uses; None keeps the value of the tier.
    """
    trained = federation.trained
    budget = largest_tier(federation.tiers) if client_id is None else federation.budgets[client_id]
    federation.method.install(trained.model, federation.state.tensors, budget)
    federation.to_units(trained.model)
    use_top_k(trained.model, top_k)
    return trained


def own_answer_of(federation: FinishedFederation, client_id: int) -> tuple[Prior | None, Tensor | None]:
    """Return how a client corrects the answers of the model that is installed, and what it adds to its head first; None
    where nobody knows, or where it adds nothing.
    """
    run = federation.trained.run
    if federation.own_answer is None or why_no_prior(run) is not None:
        return None, None
    answer = federation.own_answer(client_id)
    return make_prior(run, f"client {client_name(client_id, federation.names)}", answer.shares), answer.part
