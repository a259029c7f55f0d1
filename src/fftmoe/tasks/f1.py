"""F1 from counts that can be added up.

Shape letters: C classes.
"""

import numpy as np

from fftmoe.tasks.base import ratio


def class_f1(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """2 * hits / (predicted + actual), each [...]; NaN where a class was neither there nor predicted."""
    return ratio(2 * hits, predicted + actual)


def macro(by_class: np.ndarray) -> np.ndarray:
    """The mean over the classes [..., C] that have a value; NaN where none has."""
    known = ~np.isnan(by_class)
    return ratio(np.where(known, by_class, 0.0).sum(-1), known.sum(-1))
