"""A method of one's own: FFT-MoE in which chance alone says who holds which experts, anew in every round.

    python examples/own_method.py [recipe] [section.key=value ...]

A method is what `fftmoe/methods/base.py` asks for; a subclass of FftMoe or LoraMethod changes what it wants to.
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
    """Every client's residents are drawn from the whole pool."""

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Block by block as many experts as the budget allows."""
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
