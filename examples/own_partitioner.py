"""Add your own partitioner: the second client has half as many examples as the first, the third a third as many.

    python examples/own_partitioner.py [recipe] [section.key=value ...]

A partitioner takes labels [N], the number of clients C and a seed. It returns the client of each example, [N].
"""

import sys
import tempfile

import numpy as np

import fftmoe
from fftmoe.rng import numpy_generator


def by_rank(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    """Give client c a share of the examples proportional to 1 / (c + 1), independent of the labels."""
    ends = np.cumsum(1 / np.arange(1, num_clients + 1))
    places = (np.arange(len(labels)) + 0.5) / len(labels) * ends[-1]
    return numpy_generator(seed, "by-rank").permutation(np.searchsorted(ends, places))


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        plugins = fftmoe.Plugins(partitioners={"by-rank": by_rank})
        chosen = [*overrides, "partition.kind=plugin:by-rank", "partition.alpha=null"]
        result = fftmoe.run(recipe, f"{folder}/run", chosen, plugins=plugins)
    print(f"accuracy with clients of different size: {result.summary['accuracy']:.3f}")
