"""A partitioner of one's own: the first client has the most examples, the second half as many, the third a third.

    python examples/own_partitioner.py [recipe] [section.key=value ...]

A partitioner is a function from labels [N], the number of clients C and a seed to the client of each example.
"""

import sys
import tempfile

import numpy as np

import fftmoe
from fftmoe.rng import numpy_generator


def by_rank(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    """Client c's share is proportional to 1 / (c + 1), whatever the labels."""
    ends = np.cumsum(1 / np.arange(1, num_clients + 1))
    places = (np.arange(len(labels)) + 0.5) / len(labels) * ends[-1]
    return numpy_generator(seed, "by-rank").permutation(np.searchsorted(ends, places))


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        plugins = fftmoe.Plugins(partitioners={"by-rank": by_rank})
        chosen = [*overrides, "partition.kind=plugin:by-rank", "partition.alpha=null"]
        result = fftmoe.run(recipe, f"{folder}/run", chosen, plugins=plugins)
    print(f"accuracy with unlike sizes: {result.summary['accuracy']:.3f}")
