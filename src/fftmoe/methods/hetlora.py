"""HetLoRA truncates factors to each client's rank and averages them with padding (Cho et al., arXiv 2401.06432, 2024).

Clients have different ranks r_n. With S_n = sqrt(sum over modules of |B_n A_n|_F^2), the server averages the factors,
padded with zeros, with the weights p_n = S_n / sum S. The paper appeared at EMNLP 2024.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fftmoe.methods.deltas import DeltaMean, head_of
from fftmoe.methods.lora import LoraMethod, named_factors
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import ClientUpdate, ServerState, Tensors, names


@dataclass(frozen=True)
class HetLora(LoraMethod):
    """`HetLora` keeps factors of rank r_max; client n trains the first r_n rows of A and columns of B.

    The factors of a module are averaged over the clients that adapt it. Clients have equal weights if all S_n are zero.
    A row that no client of the round holds stays unchanged, although zero-padding would erase it. The paper's
    self-pruning of ranks is left out, because ranks follow from the budgets and stay fixed.
    """

    capabilities: ClassVar[Capabilities] = METHODS["hetlora"].capabilities

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Average the factors weighted by norm, and the head weighted by examples."""
        heads = DeltaMean(state)
        by_norm, equal = PaddedSum(state.tensors), PaddedSum(state.tensors)
        for update in updates:
            heads.add(head_of(update))
            factors = self.received(state, update)
            norm = product_norm(factors)
            by_norm.add(factors, norm)
            equal.add(factors, 1.0)
        new, diagnostics = heads.finish()
        means = {**equal.means(), **by_norm.means()}
        return replace(new, tensors={**new.tensors, **means}), diagnostics


def product_norm(factors: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """Compute sqrt(sum |B A|_F^2) without forming B A, by |B A|_F^2 = <B^T B, A A^T>."""
    squares = [float(((b.T @ b) * (a @ a.T)).sum()) for a, b in factors.values()]
    return max(sum(squares), 0.0) ** 0.5  # rounding can make the sum slightly negative


@dataclass
class PaddedSum:
    """`PaddedSum` computes a weighted mean of zero-padded factors, one client after another.

    Attributes:
        old: the global factors, A [r_max, d_in] and B [d_out, r_max].
        sums: the weighted sums of A and B so far by path, float64.
        weights: the sum of the weights so far by path.
        held: the largest rank of any client so far by path.
    """

    old: Tensors
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def add(self, factors: Mapping[str, tuple[Tensor, Tensor]], weight: float) -> None:
        """Add the factors of one client, float64, with its weight."""
        for path, (a, b) in factors.items():
            rank = a.shape[0]
            if path not in self.sums:
                old_a, old_b = (self.old[names.lora_tensor(path, factor)] for factor in "AB")
                self.sums[path] = (torch.zeros_like(old_a, dtype=a.dtype), torch.zeros_like(old_b, dtype=b.dtype))
            sum_a, sum_b = self.sums[path]
            sum_a[:rank] += weight * a
            sum_b[:, :rank] += weight * b
            self.weights[path] = self.weights.get(path, 0.0) + weight
            self.held[path] = max(self.held.get(path, 0), rank)

    def means(self) -> Tensors:
        """Return the new factors, float32, of the modules whose weights have a positive sum."""
        means: Tensors = {}
        for path, (sum_a, sum_b) in self.sums.items():
            weight, held = self.weights[path], self.held[path]
            if weight > 0:
                a, b = (self.old[names.lora_tensor(path, factor)].clone() for factor in "AB")
                a[:held] = sum_a[:held] / weight
                b[:, :held] = sum_b[:, :held] / weight
                means |= named_factors({path: (a, b)})
        return means
