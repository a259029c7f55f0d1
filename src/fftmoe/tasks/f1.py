"""Computes F1 from counts that can be added.

Shape letters: C classes.
"""

import numpy as np

from fftmoe.tasks.base import ratio


def class_f1(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return 2 * hits / (predicted + actual), each [...]; NaN where a class neither occurs nor is predicted."""
    return ratio(2 * hits, predicted + actual)


def f1_of_overlap(overlap: float) -> float:
    """Return the F1 of hits that are this share of all items that are actual or predicted (Jaccard's index)."""
    return 2 * overlap / (1 + overlap)


def macro(by_class: np.ndarray) -> np.ndarray:
    """Return the mean over the classes [..., C] that have a value; NaN where no class has one."""
    defined = ~np.isnan(by_class)
    return ratio(np.where(defined, by_class, 0.0).sum(-1), defined.sum(-1))


def none_to_find(f1: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return each F1 [...], but 1 where examples were judged (bool [...]) and no label occurs or is predicted."""
    return np.where(judged & np.isnan(f1), 1.0, f1)
