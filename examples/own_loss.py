"""Add your own client loss: an L1 penalty that pulls every change of a client towards zero.

python examples/own_loss.py [recipe] [section.key=value ...]
"""

import sys
import tempfile
from typing import Any

from torch import Tensor

import fftmoe
from fftmoe.methods.fft_moe import FftMoe, FftMoeSession

STRENGTH = 1e-3


class SparseChange(FftMoeSession):
    """Local training whose loss also has STRENGTH times the sum of |theta - theta_start|."""

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return the losses of the routers and the size of the client's change so far."""
        change = sum((p - self.start[name]).abs().sum() for name, p in self.parameters.items())
        return super().penalty(mask) + STRENGTH * change


class Sparse(FftMoe):
    """FFT-MoE with that loss."""

    def session(self, model: Any, plan: Any, tensors: Any, client_state: Any) -> SparseChange:
        """Open the training of a client, which then shares no batch with other clients."""
        return SparseChange(model, plan, tensors, client_state, self.local, self.num_experts)


if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        plugins = fftmoe.Plugins(methods={"sparse": Sparse})
        result = fftmoe.run(recipe, f"{folder}/run", [*overrides, "method=plugin:sparse"], plugins=plugins)
    print(f"accuracy with sparse changes: {result.summary['accuracy']:.3f}")
