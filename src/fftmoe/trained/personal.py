"""A client's own model, from what its run has kept: the global model's part that it holds, with what it keeps."""

from dataclasses import dataclass, replace
from pathlib import Path

from fftmoe import adapter
from fftmoe.client.compress import split_state
from fftmoe.config import Recipe
from fftmoe.errors import InputError
from fftmoe.records import Budget, Experts, ServerState
from fftmoe.server.average import served
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import Experiment, compose
from fftmoe.store import RunFolder
from fftmoe.trained.load import Trained, recipe_of


@dataclass(frozen=True)
class Client:
    """A client of a finished run.

    Attributes:
        trained: the model that it would use.
        budget: of its tier. experts: its residents, by block.
        kept: whether it has kept something of its own; else its model is its part of the global one.
    """

    trained: Trained
    budget: Budget
    experts: Experts
    kept: bool


@dataclass(frozen=True)
class Federation:
    """A finished run with the parts it was made of, computing in float32 on the CPU where that is asked for."""

    experiment: Experiment
    state: ServerState


def load_federation(folder: Path, *, exact: bool = False) -> Federation:
    """The experiment of a run and the server's last state.

    Args:
        exact: see `load_run`.

    Raises:
        InputError: the run did not finish or has no checkpoint, or its data is not here any more.
    """
    recipe = recipe_of(folder)
    saved = RunFolder(folder).load_newest()
    if saved.state is None:
        raise InputError(
            f"the run in {folder} has kept no checkpoint, without which nobody knows what its clients held; "
            "run it again (a comparison keeps those of its runs with --keep)"
        )
    return Federation(compose(_here(recipe, exact)), served(saved.state))


def _here(recipe: Recipe, exact: bool) -> Recipe:
    """The recipe without what only training needs; its device may not be here."""
    changes = {"device": "cpu", "precision": "float32"} if exact else {"device": "auto"}
    engine = recipe.engine.model_copy(update={**changes, "prefix_cache": "off"})
    return recipe.model_copy(update={"engine": engine})


def load_client(folder: Path, client_id: int, top_k: int | None = None, *, exact: bool = False) -> Client:
    """A client's own model, as the run's personal accuracies measure it.

    Args:
        top_k: experts a token uses; its tier's when None.
        exact: see `load_run`.

    Raises:
        InputError: as `load_federation`; there is no such client, or it holds fewer than `top_k` experts.
    """
    federation = load_federation(folder, exact=exact)
    experiment, state = federation.experiment, federation.state
    if not 0 <= client_id < experiment.num_clients:
        raise InputError(f"client {client_id}: the run in {folder} has clients 0 to {experiment.num_clients - 1}")
    budgets, seed = experiment.budgets, experiment.recipe.seed
    plan = plan_round(experiment.method, state, state.round, [client_id], budgets, experiment.training, seed).clients[0]
    kept, _ = split_state(RunFolder(folder).client_states.load(client_id, before=state.round + 1))
    experiment.method.personalize(experiment.model, experiment.method.download(state, plan), plan, kept)
    if top_k is not None:
        for moe in adapter.blocks(experiment.model).values():
            moe.view(top_k)
    budget = plan.budget if top_k is None else replace(plan.budget, top_k=top_k)
    trained = Trained(recipe_of(folder), experiment.label_names, experiment.model)
    return Client(trained, budget, plan.experts, bool(kept))
