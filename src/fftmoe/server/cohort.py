"""Chooses the clients of a round. The choice depends only on the seed and the round number."""

import math
from collections.abc import Collection, Sequence

from fftmoe.rng import numpy_generator


def choose_cohort(num_clients: int, clients_per_round: int, seed: int, round: int) -> tuple[int, ...]:
    """Draw `clients_per_round` distinct clients uniformly at random; ascending `client_id`s."""
    chosen = numpy_generator(seed, "cohort", round).choice(num_clients, clients_per_round, replace=False)
    return tuple(sorted(int(c) for c in chosen))


def substitute(
    cohort: Sequence[int], absent: Collection[int], num_clients: int, seed: int, round: int
) -> tuple[int, ...]:
    """Replace the absent clients of a cohort by other clients, drawn at random, if there are enough."""
    present = [client for client in cohort if client not in absent]
    others = sorted(set(range(num_clients)) - set(cohort) - set(absent))
    wanted = min(len(cohort) - len(present), len(others))
    if wanted == 0:
        return tuple(present)
    chosen = numpy_generator(seed, "substitutes", round).choice(others, wanted, replace=False)
    return tuple(sorted([*present, *(int(c) for c in chosen)]))


def quorum_of(clients_per_round: int, fraction: float) -> int:
    """Return how many updates make a round valid: the fraction of the cohort, rounded up, and at least one."""
    return max(1, math.ceil(fraction * clients_per_round))
