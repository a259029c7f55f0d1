"""What the server does in a round: plan it, then apply its updates. Pure functions of the state."""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fftmoe.methods.base import Method
from fftmoe.records import Budget, ClientPlan, ClientUpdate, RoundPlan, ServerState, Training, digest
from fftmoe.records.codec import decode
from fftmoe.rng import derive, numpy_generator


def choose_cohort(num_clients: int, clients_per_round: int, seed: int, round: int) -> tuple[int, ...]:
    """`clients_per_round` distinct clients, uniform, ascending; a function of the seed and the round."""
    chosen = numpy_generator(seed, "cohort", round).choice(num_clients, clients_per_round, replace=False)
    return tuple(sorted(int(c) for c in chosen))


def substitute(
    cohort: Sequence[int], absent: Collection[int], num_clients: int, seed: int, round: int
) -> tuple[int, ...]:
    """The cohort with random others in the place of its clients that are absent now, as far as there are any."""
    present = [client for client in cohort if client not in absent]
    others = sorted(set(range(num_clients)) - set(cohort) - set(absent))
    wanted = min(len(cohort) - len(present), len(others))
    if wanted == 0:
        return tuple(present)
    chosen = numpy_generator(seed, "substitutes", round).choice(others, wanted, replace=False)
    return tuple(sorted([*present, *(int(c) for c in chosen)]))


def quorum_of(clients_per_round: int, fraction: float) -> int:
    """How many updates a round must have: the fraction of its cohort, rounded up, and one at the least."""
    return max(1, math.ceil(fraction * clients_per_round))


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


def together(clients: Sequence[ClientPlan], at_once: int) -> list[tuple[ClientPlan, ...]]:
    """The clients in groups of at most `at_once` that can train on one backbone: those that train alike, in order.

    What a group is depends on the plans alone, never on who runs it, so that any number of workers gives the same.
    """
    alike: dict[tuple[object, ...], list[ClientPlan]] = {}
    for client in clients:
        can = client.task == "train" and at_once > 1
        key = (client.budget, client.training) if can else (client.client_id,)
        alike.setdefault(key, []).append(client)
    return [group for own in alike.values() for group in _chunks(own, at_once)]


def _chunks(clients: Sequence[ClientPlan], most: int) -> list[tuple[ClientPlan, ...]]:
    """As few groups as can be, and as equal as can be: a worker with a small one would wait for the others."""
    groups = math.ceil(len(clients) / most)
    bounds = [len(clients) * group // groups for group in range(groups + 1)]
    return [tuple(clients[start:stop]) for start, stop in itertools.pairwise(bounds)]


class Aggregates(Protocol):
    """What merges the updates of a round: a method, or what stands in its place in a private run."""

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """See `Method`."""
        ...


def apply_round(
    method: Aggregates, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int = 0
) -> tuple[ServerState, dict[str, Any]]:
    """Merge the cohort's updates, which come in `client_id` order, as sent, and are consumed one at a time.

    A round with fewer updates than `quorum` is void: it counts as a round, and changes nothing. So is one in which
    nobody answers, unless nobody was asked: a cohort that is drawn by chance may be empty.
    """
    assert plan.round == state.round + 1, f"round {plan.round} does not follow {state.round}"
    counted = Counted(replace(update, tensors=decode(update.tensors)) for update in updates)
    first = next(counted, None)
    if first is not None or not plan.clients:
        merged, diagnostics = method.aggregate(state, itertools.chain([] if first is None else [first], counted))
        if counted.number >= quorum:
            return merged, diagnostics
    return replace(state, round=plan.round), {"void": True}


class Counted(Iterator[ClientUpdate]):
    """These updates, and the `number` of them that have been taken."""

    def __init__(self, updates: Iterable[ClientUpdate]) -> None:
        self._updates, self.number = iter(updates), 0

    def __next__(self) -> ClientUpdate:
        update = next(self._updates)
        self.number += 1
        return update
