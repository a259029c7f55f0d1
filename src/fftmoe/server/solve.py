"""The server's part of a closed-form head: ask everyone for sums, solve, and put the solution into the state."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fftmoe.head import HeadSums, solved_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, RoundPlan, ServerState, Training, digest, names
from fftmoe.rng import derive


def every_expert(state: ServerState, budget: Budget) -> Experts:
    """All experts of the pool in the blocks of a budget; nothing if the global model has no experts."""
    pools = {block: state.load.get(names.load_of_block(block)) for block in budget.blocks}
    return {block: tuple(range(len(load))) for block, load in pools.items() if load is not None}


def plan_sums(state: ServerState, clients: Sequence[int], budget: Budget, training: Training, seed: int) -> RoundPlan:
    """Every client measures the same model, the global one as `budget` uses it, whatever its own budget is.

    Sums of unlike models would fit none of them. A client only runs the model forward here, which takes a quarter of
    the memory that training takes; what it downloads for it is counted. Before the first round that is the head alone:
    a fresh adapter adds nothing (`Method.init`).
    """
    if state.round == 0:
        budget = replace(budget, blocks=())
    experts, base = every_expert(state, budget), digest(state.tensors)
    plans = (
        ClientPlan(
            round=state.round,
            client_id=client_id,
            seed=derive(seed, "sums", client_id, state.round),
            budget=budget,
            experts=experts,
            training=training,
            task="sums",
            base=base,
        )
        for client_id in clients
    )
    return RoundPlan(state.round, tuple(plans))


def solve_head(
    state: ServerState,
    updates: Iterable[ClientUpdate],
    total: Callable[[Iterable[HeadSums]], HeadSums] = HeadSums.total,
) -> ServerState:
    """The state with the head that the sums of these updates give (docs/math.md, Closed-form head)."""
    solution = solved_head(total(HeadSums.from_tensors(update.tensors) for update in updates))
    return replace(state, tensors=state.tensors | solution)
