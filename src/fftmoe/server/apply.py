"""Ends a round: aggregates the cohort's updates into the next server state. Its functions are pure."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from fftmoe.records import ClientUpdate, RoundPlan, ServerState
from fftmoe.records.codec import decode

Diagnostics = dict[str, Any]
"""The values that a method reports about a round for its row of `metrics.jsonl`."""


class Aggregates(Protocol):
    """Aggregates a round's updates into the next state, as a method does, or the policy of a private run."""

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, Diagnostics]:
        """See `Method.aggregate`."""
        ...


def apply_round(
    method: Aggregates, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int = 0
) -> tuple[ServerState, Diagnostics]:
    """Aggregate the cohort's updates into the next state.

    A round with fewer updates than `quorum` is void, and so is a round in which nobody answers: it counts as a round
    and changes nothing.

    Args:
        updates: as the clients sent them, in `client_id` order; they are consumed one at a time.
    """
    _check_order(state, plan)
    counted = Counted(updates)
    first = next(counted, None)
    if first is not None:
        merged, diagnostics = aggregate_round(method, state, plan, itertools.chain([first], counted))
        if counted.number >= quorum:
            return merged, diagnostics
    return replace(state, round=plan.round), {"void": True}


def aggregate_round(
    method: Aggregates, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate]
) -> tuple[ServerState, Diagnostics]:
    """Aggregate the cohort's updates into the next state, however many there are; see `apply_round`."""
    _check_order(state, plan)
    return method.aggregate(state, (replace(update, tensors=decode(update.tensors)) for update in updates))


def _check_order(state: ServerState, plan: RoundPlan) -> None:
    assert plan.round == state.round + 1, f"round {plan.round} does not follow {state.round}"


class Counted(Iterator[ClientUpdate]):
    """Passes updates on and counts, in `number`, how many of them have been consumed."""

    def __init__(self, updates: Iterable[ClientUpdate]) -> None:
        self._updates, self.number = iter(updates), 0

    def __next__(self) -> ClientUpdate:
        update = next(self._updates)
        self.number += 1
        return update
