"""What the server does in a round: plan it, then apply its updates. Pure functions of the state."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fftmoe.codec import decode
from fftmoe.methods.base import Method
from fftmoe.records import Budget, ClientPlan, ClientUpdate, RoundPlan, ServerState, Training
from fftmoe.rng import derive, numpy_generator


def choose_cohort(num_clients: int, clients_per_round: int, seed: int, round: int) -> tuple[int, ...]:
    """`clients_per_round` distinct clients, uniform, ascending; a function of the seed and the round."""
    chosen = numpy_generator(seed, "cohort", round).choice(num_clients, clients_per_round, replace=False)
    return tuple(sorted(int(c) for c in chosen))


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
    """Residents, seeds and training of every client of the cohort."""
    experts = method.assign(state, cohort)
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
            )
            for client_id in cohort
        ),
    )


def apply_round(
    method: Method, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate]
) -> tuple[ServerState, dict[str, Any]]:
    """Merge the cohort's updates, which come in `client_id` order, as sent, and are consumed one at a time."""
    assert plan.round == state.round + 1, f"round {plan.round} does not follow {state.round}"
    return method.aggregate(state, (replace(update, tensors=decode(update.tensors)) for update in updates))
