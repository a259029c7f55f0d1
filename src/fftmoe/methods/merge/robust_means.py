"""Computes means of N changes of which up to f may contain arbitrary values (docs/math.md, Robust means).

The trimmed mean and the median follow Yin et al. (arXiv 1803.01498), and multi-Krum follows Blanchard et al. (arXiv
1703.02757). All means weigh clients equally, because a malicious client may claim any number of examples. Shape
letters: N clients in `client_id` order, P numbers per client, float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def shortened(deltas_NP: Tensor, bound: float) -> Tensor:
    """Scale each change whose Euclidean norm exceeds `bound` to the norm `bound`, [N, P]."""
    norms_N1 = deltas_NP.norm(dim=1, keepdim=True)
    return deltas_NP * (bound / norms_N1.clamp_min(bound)).where(norms_N1 > bound, 1.0)


def bounded_mean(deltas_NP: Tensor, bound: float, least: int) -> Tensor:
    """Compute the sum of the shortened changes divided by max(N, `least`), [P].

    One client moves the result by at most `bound / max(N, least)`. With `least` = 2 f + 1, f clients move it by less
    than half of `bound`.
    """
    return shortened(deltas_NP, bound).sum(0) / max(len(deltas_NP), least)


def trimmed_mean(deltas_NP: Tensor, f: int) -> Tensor:
    """Compute, for every number, the mean without the f largest and the f smallest values, [P].

    With N > 2 f the result lies within the range of the honest values (Yin et al., arXiv 1803.01498).
    """
    return deltas_NP.sort(0).values[f : len(deltas_NP) - f].mean(0)


def median(deltas_NP: Tensor, f: int = 0) -> Tensor:
    """Compute the median of every number, [P]: the trimmed mean that keeps one value, or two if N is even."""
    return trimmed_mean(deltas_NP, (len(deltas_NP) - 1) // 2)


def multi_krum(deltas_NP: Tensor, f: int) -> Tensor:
    """Compute the mean of the N - f changes with the lowest scores, [P] (Blanchard et al., arXiv 1703.02757).

    The score of a change is the sum of its squared distances to the N - f - 2 nearest other changes. Equal scores are
    ordered by `client_id`. N must be at least 2 f + 3 if f is positive.
    """
    # Distances are computed from differences. Matrix products of long vectors would lose small distances to rounding.
    distances_NN = torch.cdist(deltas_NP, deltas_NP, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances_NN.sort(1).values[:, 1 : len(deltas_NP) - f - 1]  # without the distance to itself, which is 0
    chosen = nearest.sum(1).argsort(stable=True)[: len(deltas_NP) - f]
    return deltas_NP[chosen.sort().values].mean(0)


MEANS: dict[str, tuple[Callable[[Tensor, int], Tensor], int]] = {
    "trimmed-mean": (trimmed_mean, 1),
    "median": (median, 1),
    "multi-krum": (multi_krum, 3),
}
"""Name -> the mean, and the number of clients that it needs in addition to 2 f if f is positive."""
