"""Says which difference of two values, or of two numbers of clients, chance alone explains."""

import math
from collections.abc import Sequence


def chance_margin(value: float, interval: Sequence[float], other: float, its: Sequence[float]) -> float:
    """Return up to which difference two values differ by no more than chance.

    It is the root of the sum of the squares of the distances from each value to the end of its 95 % interval that lies
    towards the other value, as for independent values (Newcombe, 1998, method 10). Of two values that are measured on
    the same rows it is cautious. Equal values have the larger of the two sides' margins.
    """
    return max(
        math.hypot(upper[0] - upper[1][0], lower[1][1] - lower[0])
        for upper, lower in (((value, interval), (other, its)), ((other, its), (value, interval)))
        if upper[0] >= lower[0]
    )


def divided_by_chance(gain: int, lose: int) -> bool:
    """Return whether fair coins would often divide these as unevenly: the sign test, two-sided, at 5 %."""
    number = gain + lose
    tail = sum(math.comb(number, fewer) for fewer in range(min(gain, lose) + 1))
    return 2 * tail > 0.05 * 2**number
