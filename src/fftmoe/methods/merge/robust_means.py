"""Means of what several clients sent, of whom f may have sent anything (docs/math.md, Robust means).

All of them count one client as one, whatever the number of examples that it says it has. Shape letters: N clients, in
`client_id` order, P numbers of each, float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def shortened(deltas_NP: Tensor, bound: float) -> Tensor:
    """Each client's change brought to the Euclidean norm `bound` where it is longer."""
    norms_N1 = deltas_NP.norm(dim=1, keepdim=True)
    return deltas_NP * (bound / norms_N1.clamp_min(bound)).where(norms_N1 > bound, 1.0)


def bounded_mean(deltas_NP: Tensor, bound: float, least: int) -> Tensor:
    """Mean of the shortened changes, [P]; clients missing to the number `least` count as ones that changed nothing.

    One client moves it by at most `bound / max(N, least)`, and f of them, with `least` = 2 f + 1, by less than half of
    `bound`.
    """
    return shortened(deltas_NP, bound).sum(0) / max(len(deltas_NP), least)


def trimmed_mean(deltas_NP: Tensor, f: int) -> Tensor:
    """Of every number the mean without its f largest and f smallest values, [P] (Yin et al., arXiv 1803.01498).

    With N > 2 f it lies within the range of the honest values, whatever f clients send.
    """
    return deltas_NP.sort(0).values[f : len(deltas_NP) - f].mean(0)


def median(deltas_NP: Tensor, f: int = 0) -> Tensor:
    """Of every number the median, [P], the mean of the middle two where N is even: trimmed as far as can be."""
    return trimmed_mean(deltas_NP, (len(deltas_NP) - 1) // 2)


def multi_krum(deltas_NP: Tensor, f: int) -> Tensor:
    """Mean of the N - f changes that have the closest neighbours, [P] (Blanchard et al., arXiv 1703.02757).

    A change is scored by the sum of its squared distances to its N - f - 2 nearest others; of equal scores the lower
    `client_id` goes first. N is at least 2 f + 3.
    """
    # Through differences: from products of long vectors the distance of near ones would be rounding.
    distances_NN = torch.cdist(deltas_NP, deltas_NP, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances_NN.sort(1).values[:, 1 : len(deltas_NP) - f - 1]  # without its own, which is 0
    chosen = nearest.sum(1).argsort(stable=True)[: len(deltas_NP) - f]
    return deltas_NP[chosen.sort().values].mean(0)


MEANS: dict[str, tuple[Callable[[Tensor, int], Tensor], int]] = {
    "trimmed-mean": (trimmed_mean, 1),
    "median": (median, 1),
    "multi-krum": (multi_krum, 3),
}
"""A mean, and how many clients it needs beyond 2 f where f is above 0."""
