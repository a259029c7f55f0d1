"""Add your own aggregator: the usual mean per expert, over client updates whose norm is bounded.

    python examples/own_aggregator.py [recipe] [section.key=value ...]

`fftmoe/methods/merge/aggregate.py` defines the interface: `add` takes a client update, `mean` returns the aggregate.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial

import torch

import fftmoe
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.records import ClientUpdate


@dataclass
class Shortened(WeightedSum):
    """Scales every client update whose norm exceeds `longest` down to that norm before it adds the update."""

    longest: float = 1.0

    def add(self, update: ClientUpdate) -> None:
        """Add a client update, clipped by the norm over all its tensors together."""
        norm = torch.stack([delta.norm() for delta in update.tensors.values()]).norm()
        factor = (self.longest / norm).clamp(max=1.0)
        super().add(replace(update, tensors={name: factor * delta for name, delta in update.tensors.items()}))


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        plugins = fftmoe.Plugins(aggregators={"shortened": partial(Shortened, longest=0.5)})
        chosen = [*overrides, "federation.aggregation=plugin:shortened"]
        result = fftmoe.run(recipe, f"{folder}/run", chosen, plugins=plugins)
    print(f"accuracy with shortened changes: {result.summary['accuracy']:.3f}")
