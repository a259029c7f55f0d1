"""Chooses the resident experts R_n of every client (docs/math.md, Residents).

A client without routing statistics takes its experts from a balanced, seeded design. Afterwards it holds the experts
that its router prefers, and one expert that few clients hold.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fftmoe.records import Budget, Experts
from fftmoe.rng import numpy_generator


@dataclass(frozen=True, eq=False)
class Design(Mapping[int, Experts]):
    """`Design` maps client_id -> block -> expert ids in ascending order. It takes one bit per client, block and expert.

    Attributes:
        clients: client ids in ascending order, int64 [C].
        held: block -> uint8 [C, ceil(M / 8)]. Packed bit m of a row is set if the client holds expert m. No bit is set
            for a client that does not adapt the block.
        num_experts: M, the size of the pool in each block.
    """

    clients: np.ndarray
    held: Mapping[int, np.ndarray]
    num_experts: int

    def __len__(self) -> int:
        return len(self.clients)

    def __iter__(self) -> Iterator[int]:
        return map(int, self.clients)

    def __getitem__(self, client_id: int) -> Experts:
        row = int(self.clients.searchsorted(client_id))
        if row == len(self) or self.clients[row] != client_id:
            raise KeyError(client_id)
        bits = {block: np.unpackbits(held[row], count=self.num_experts) for block, held in self.held.items()}
        return {block: tuple(np.flatnonzero(row).tolist()) for block, row in bits.items() if row.any()}


def balanced_design(budgets: Mapping[int, Budget], num_experts: int, seed: int) -> Design:
    """Assign resident experts before any statistics exist: each client takes the experts with the fewest holders.

    Clients take their experts in the order of their ids, and ties are broken at random. Within a block the numbers of
    holders of any two experts differ by at most one. The computation takes some microseconds per client and block, so
    callers should keep the result.

    Args:
        budgets: client_id -> budget for the whole population.
        num_experts: M, the size of the pool in each block.
        seed: seed of the random ties.
    """
    clients = np.array(sorted(budgets), dtype=np.int64)
    packed = {}
    for block in sorted({b for budget in budgets.values() for b in budget.blocks}):
        random = numpy_generator(seed, "residents", block)
        holders = np.zeros(num_experts, dtype=int)
        held = np.zeros((len(clients), num_experts), dtype=bool)
        for row, client_id in enumerate(clients.tolist()):
            budget = budgets[client_id]
            if block in budget.blocks:
                dealt = np.lexsort((random.random(num_experts), holders))[: budget.experts]
                holders[dealt] += 1
                held[row, dealt] = True
        packed[block] = np.packbits(held, axis=1)
    return Design(clients, packed, num_experts)


def personal_residents(
    budgets: Mapping[int, Budget],
    preferences: Mapping[int, Experts],
    fallback: Mapping[int, Experts],
    num_experts: int,
    explore: bool,
) -> dict[int, Experts]:
    """Assign resident experts to a cohort: each client's preferred experts, and one expert to explore.

    A client without statistics takes its experts from `fallback` (the balanced design). In `client_id` order, the
    exploration slot goes to the expert with the fewest holders in the cohort so far (lowest id on a tie), so that every
    expert is trained. A client with a single slot, or with the whole pool, has no exploration slot.

    Args:
        budgets: client_id -> budget for the cohort.
        preferences: client_id -> block -> expert ids, best first.
        fallback: client_id -> block -> expert ids.
        num_experts: M, the size of the pool in each block.
        explore: whether clients have an exploration slot.
    """
    residents: dict[int, Experts] = {client_id: {} for client_id in sorted(budgets)}
    for block in sorted({b for budget in budgets.values() for b in budget.blocks}):
        holders = [c for c in residents if block in budgets[c].blocks]
        chosen = {c: _favourites(c, block, budgets[c], preferences, fallback, num_experts, explore) for c in holders}
        coverage = np.bincount([m for ids in chosen.values() for m in ids], minlength=num_experts)
        for client_id in holders:
            ids = list(chosen[client_id])
            while len(ids) < budgets[client_id].experts:
                candidates = [m for m in range(num_experts) if m not in ids]
                least = min(candidates, key=lambda m: (coverage[m], m))
                coverage[least] += 1
                ids.append(least)
            residents[client_id][block] = tuple(sorted(ids))
    return residents


def _favourites(
    client_id: int,
    block: int,
    budget: Budget,
    preferences: Mapping[int, Experts],
    fallback: Mapping[int, Experts],
    num_experts: int,
    explore: bool,
) -> tuple[int, ...]:
    """Return the experts of all slots of a client but the exploration slot."""
    known = preferences.get(client_id, {}).get(block)
    if known is None:
        return fallback[client_id][block]
    slots = budget.experts
    if explore and 1 < slots < num_experts:
        slots -= 1
    return known[:slots]
