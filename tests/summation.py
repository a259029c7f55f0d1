"""How far two sums of the same numbers may be apart when they are added in different orders."""

import torch
from torch import Tensor


def additions(number: int, values: Tensor, least: float = 0.0) -> float:
    """The bound of an assertion for results that differ by the rounding of this many additions in `values.dtype`.

    Each addition rounds by at most half a unit in the last place of its sum, and two results have different errors: at
    most `number` units of the largest result. The largest counts for all, because in a small one the terms cancel.

    Args:
        values: the expected results.
        least: the size of what is added, where that may be more than the largest result.
    """
    return number * torch.finfo(values.dtype).eps * max(least, float(values.detach().abs().max()))
