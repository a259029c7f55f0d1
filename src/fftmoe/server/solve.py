"""Does the server's part of a closed-form head: requests feature statistics, computes the head,
and puts it into the state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fftmoe.head import (
    ONE_LABEL,
    Answers,
    HeadSums,
    LabelAnswers,
    LabelTotals,
    best_temperature,
    solved_with_leverage,
)
from fftmoe.methods.base import Method
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, RoundPlan, ServerState, Training, digest, names
from fftmoe.rng import derive
from fftmoe.server.plan import plan_round


def every_expert(state: ServerState, budget: Budget) -> Experts:
    """Select all experts of the pool in the blocks of a budget; the result is empty if the model has no experts."""
    pools = {block: state.load.get(names.load_of_block(block)) for block in budget.blocks}
    return {block: tuple(range(len(load))) for block, load in pools.items() if load is not None}


def adds_nothing(state: ServerState) -> bool:
    """Return whether the last layer of every expert, shared expert and low-rank update is zero."""
    return not any(tensor.any() for name, tensor in state.tensors.items() if names.is_last_layer(name))


def plan_sums(
    state: ServerState, clients: Sequence[int], budget: Budget, training: Training, seed: int, task: str = "sums"
) -> RoundPlan:
    """Plan a round in which every client computes feature statistics, or validates, with the same model.

    All clients use the global model with `budget`, and not with their own budgets, because statistics of different
    models cannot be added. A client only runs the model forward, which takes a quarter of the memory of training. The
    ledger counts its download. Before the first round the download is only the head if the adapter is a new one,
    which adds nothing to the output (`Method.init`).
    """
    if state.round == 0 and adds_nothing(state):
        budget = replace(budget, blocks=())
    experts, base = every_expert(state, budget), digest(state.tensors)
    plans = (
        ClientPlan(
            round=state.round,
            client_id=client_id,
            seed=derive(seed, task, client_id, state.round),
            budget=budget,
            experts=experts,
            training=training,
            task=task,
            base=base,
        )
        for client_id in clients
    )
    return RoundPlan(state.round, tuple(plans))


def plan_validation(
    method: Method,
    state: ServerState,
    clients: Sequence[int],
    budget: Budget,
    budgets: Mapping[int, Budget],
    training: Training,
    seed: int,
) -> RoundPlan:
    """Plan a round in which every client validates the global model, or its own model where it has one.

    A client's own model has the client's experts, blocks and top_k, and no others.

    Args:
        budget: with which all clients measure the global model. budgets: by client, of its own model.
    """
    if method.capabilities.personal and (state.round or not adds_nothing(state)):
        return plan_round(method, state, state.round, clients, budgets, training, seed, "validate")
    return plan_sums(state, clients, budget, training, seed, "validate")


def solve_head(
    state: ServerState,
    updates: Iterable[ClientUpdate],
    total: Callable[[Iterable[HeadSums]], HeadSums] = HeadSums.total,
    answers: Answers = ONE_LABEL,
) -> ServerState:
    """Compute the head from the feature statistics in these updates, and put it into the state with its temperature
    and the shares of the labels, if its outputs have probabilities.

    The temperature is that of the head that the clients were sent, on the same features: that head is in use until now
    and differs little from the new one. Before the first round there was none.

    Args:
        total: adds the statistics. With another sum than the plain one, clients are not trusted, and the scores, which
            it does not bound, give no temperature; nor is the sum one of labels.
        answers: what the head is fitted to.

    Source: docs/math.md, Closed-form head.
    """
    scores: list[Tensor] = []

    def parts() -> Iterator[HeadSums]:
        for update in updates:
            if isinstance(answers, LabelAnswers):
                scores.append(update.tensors[names.STATISTICS_SCORES].double())
            yield HeadSums.from_tensors(update.tensors)

    sums = total(parts())
    solution, leverage = solved_with_leverage(sums)
    solved = replace(state, tensors=state.tensors | solution)
    if not isinstance(answers, LabelAnswers) or total != HeadSums.total:
        return solved
    # Both are whole numbers, which were rounded to float32 on their way.
    shares_C = LabelTotals(sums.moment[-1].round(), round(sums.num_items)).shares(answers)
    temperature = state.temperature
    if state.round:
        choices = answers.choices(len(shares_C))
        temperature = best_temperature(torch.stack(scores).sum(0), leverage, sums.num_items, choices)
    return replace(solved, temperature=temperature, label_shares=tuple(shares_C.tolist()))
