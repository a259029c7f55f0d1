"""Bounds the feature statistics of clients that may be malicious:
none counts more than the median client's (docs/math.md).
"""

from collections.abc import Iterable

import torch

from fftmoe.head.closed_form import HeadSums


def bounded_total(parts: Iterable[HeadSums]) -> HeadSums:
    """Return the total of the clients' feature statistics, each scaled down to the size of the median one if it is
    larger.

    The size is the trace of the Gram matrix, sum |x|^2, which grows with more or longer features, and for numbers the
    sum of their squares (`HeadSums.size`). Statistics that are
    scaled as a whole are still statistics, of examples with a smaller weight. All parts are in memory together.

    Args:
        parts: one for each client, at least one.
    """
    own = list(parts)
    sizes = torch.stack([part.size for part in own])
    shares = (sizes.median() / sizes.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0).tolist()
    return HeadSums.total(part.scaled(share) for share, part in zip(shares, own, strict=True))
