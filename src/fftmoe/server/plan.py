"""Makes the plan of a round: what the server asks each client of the cohort to do. Its functions are pure."""

import itertools
import math
from collections.abc import Mapping, Sequence

from fftmoe.methods.base import Method
from fftmoe.records import Budget, ClientPlan, RoundPlan, ServerState, Training, digest
from fftmoe.rng import derive


def plan_round(
    method: Method,
    state: ServerState,
    round: int,
    cohort: Sequence[int],
    budgets: Mapping[int, Budget],
    training: Training,
    seed: int,
    task: str = "train",
) -> RoundPlan:
    """Give every client of the cohort its resident experts, its seed, its budget and its training settings."""
    experts, base = method.assign(state, cohort), digest(state.tensors)
    return RoundPlan(
        round,
        tuple(
            ClientPlan(
                round=round,
                client_id=client_id,
                seed=derive(seed, "client", client_id, round),
                budget=budgets[client_id],
                experts=experts[client_id],
                training=training,
                task=task,
                base=base,
            )
            for client_id in cohort
        ),
    )


def group_clients(clients: Sequence[ClientPlan], most: int) -> list[tuple[ClientPlan, ...]]:
    """Divide the clients into groups of at most `most` that can train in one batch on one backbone.

    Clients of a group have the same budget and the same training settings. The groups depend on the plans
    only, not on the workers, so any number of workers gives the same result.
    """
    alike: dict[tuple[object, ...], list[ClientPlan]] = {}
    for client in clients:
        can_share = client.task == "train" and most > 1
        key = (client.budget, client.training) if can_share else (client.client_id,)
        alike.setdefault(key, []).append(client)
    return [group for members in alike.values() for group in _even_chunks(members, most)]


def _even_chunks(clients: Sequence[ClientPlan], most: int) -> list[tuple[ClientPlan, ...]]:
    """Divide clients into as few chunks as possible, of nearly equal sizes so that no worker waits long for another."""
    groups = math.ceil(len(clients) / most)
    bounds = [len(clients) * group // groups for group in range(groups + 1)]
    return [tuple(clients[start:stop]) for start, stop in itertools.pairwise(bounds)]
