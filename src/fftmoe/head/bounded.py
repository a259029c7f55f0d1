"""Sums of clients of whom some lie, none of which weighs more than the median client's (docs/math.md, Robust means)."""

from collections.abc import Iterable

import torch

from fftmoe.head.closed_form import HeadSums


def bounded_total(parts: Iterable[HeadSums]) -> HeadSums:
    """The sums of all clients, each made as small as the median one where it is larger; at least one part.

    The size of sums is the trace of their gram, sum |x|^2: what more or longer features would add to. Made smaller as
    a whole they are still sums, of examples that count for less. All parts are held at once.
    """
    own = list(parts)
    sizes = torch.stack([part.gram.trace() for part in own])
    shares = (sizes.median() / sizes.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0).tolist()
    return HeadSums.total(HeadSums(s * part.gram, s * part.moment) for s, part in zip(shares, own, strict=True))
