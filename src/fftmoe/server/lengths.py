"""Compares how long the changes of a round are: the default of `federation.max_update_norm`.

Nothing but the round itself says how long an honest change is: it depends on the method, the data, the steps and the
learning rate. But while more than half of a round's answers are honest, the median of all lengths is within those of
the honest ones, whatever the others send. So no change may be longer than `MOST_TIMES` that median. The bound needs no
history and holds in the first round too. It needs three answers; with fewer, the last rounds take their place.

Changes of length 0 change nothing: they are neither compared nor counted.
"""

import math
from collections.abc import Sequence
from statistics import median_low

import torch

from fftmoe.head import HeadSums
from fftmoe.records import ClientUpdate
from fftmoe.records.codec import decode

MOST_TIMES = 10.0  # the median; honest clients of the quickstart stay below 2.4 (benchmarks/update_norms.py)
FEWEST_ANSWERS = 3  # answers of a round that can be compared with each other
ROUNDS_REMEMBERED = 5  # whose lengths are remembered


def update_length(update: ClientUpdate, task: str) -> float:
    """Return the Euclidean norm of all changes together; of statistics, the root mean square length of the features,
    and of the numbers that are fitted to them.
    """
    if task == "sums":
        sums = HeadSums.from_tensors(update.tensors)
        return math.sqrt(max(float(sums.size), 0.0) / sums.num_items)
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in decode(update.tensors).values()]
    return float(torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64)))


def usual_length(lengths: Sequence[float]) -> float | None:
    """Return the lower median of the lengths above 0; of fewer than three the largest; None if there is none.

    One of two clients may send what is as good as nothing, and must not thereby keep the other one out.
    """
    own = [length for length in lengths if length > 0]
    if not own:
        return None
    return median_low(own) if len(own) >= FEWEST_ANSWERS else max(own)


def longest_allowed(lengths: Sequence[float], earlier: Sequence[float]) -> float | None:
    """Return how long a change may be; None where there is nothing to compare with.

    Args:
        lengths: of the changes of this round. earlier: the usual lengths of the last rounds.
    """
    enough = sum(length > 0 for length in lengths) >= FEWEST_ANSWERS
    usual = usual_length(lengths if enough else earlier)
    return None if usual is None else MOST_TIMES * usual
