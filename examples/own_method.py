"""Add your own method: FFT-MoE with resident experts that are drawn at random in every round.

    python examples/own_method.py [recipe] [section.key=value ...]

`fftmoe/methods/base.py` defines the interface; a subclass of FftMoe or LoraMethod overrides parts of it.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import fftmoe
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Experts, ServerState
from fftmoe.rng import numpy_generator


@dataclass(frozen=True)
class Drawn(FftMoe):
    """Draws the resident experts of every client from the whole pool."""

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Draw as many experts in each block as the client's budget allows."""
        residents: dict[int, Experts] = {}
        for client in cohort:
            budget, source = self.budgets[client], numpy_generator(self.seed, "drawn", client, state.round)
            draw = (source.choice(self.num_experts, budget.experts, replace=False) for _ in budget.blocks)
            residents[client] = {b: tuple(sorted(ids.tolist())) for b, ids in zip(budget.blocks, draw, strict=True)}
        return residents


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        plugins = fftmoe.Plugins(methods={"drawn": Drawn})
        result = fftmoe.run(recipe, f"{folder}/run", [*overrides, "method=plugin:drawn"], plugins=plugins)
    print(f"accuracy with drawn experts: {result.summary['accuracy']:.3f}")
