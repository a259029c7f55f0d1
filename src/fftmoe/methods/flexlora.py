"""FlexLoRA averages the clients' products and factors the mean by an SVD (Bai et al., arXiv 2402.11505, NeurIPS 2024).

The server computes dW = sum_n p_n B_n A_n = U S V^T, keeps the r_max largest components, and sends client n the first
r_n of them, with B = U sqrt(S) and A = sqrt(S) V^T.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fftmoe.methods.flora import stack_cohort
from fftmoe.methods.lora import LoraMethod
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import ClientUpdate, ServerState, names
from fftmoe.threads import one_thread

# Components smaller than the float32 rounding error of the largest one cannot be represented in float32 factors.
NEGLIGIBLE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FlexLora(LoraMethod):
    """`FlexLora` keeps the largest components of the mean product as factors A and B.

    The product of the first r components is the best approximation of dW of rank r. The even division of S between the
    factors is our choice, which gives factors of similar size; we could not check how the paper divides S. A component
    that is zero gets the initial A and B = 0, because a component with both factors zero could never be trained. The
    weights p_n are proportional to the numbers of examples of the clients that adapt the module. A module that no
    client adapts stays unchanged.
    """

    capabilities: ClassVar[Capabilities] = METHODS["flexlora"].capabilities

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Replace the factors of each module by those from the SVD of the cohort's stack."""
        new, stacks, diagnostics = stack_cohort(self, state, updates)
        tensors = dict(new.tensors)
        for path, (a, b) in stacks.items():
            name_a, name_b = (names.lora_tensor(path, factor) for factor in "AB")
            rank = tensors[name_a].shape[0]
            split_a, split_b = split_product(a, b, rank)
            kept = split_a.shape[0]
            fresh_a, fresh_b = self.first_a(path, rank, round=0), self.first_b(path, rank)
            tensors[name_a] = torch.cat([split_a.float(), fresh_a[kept:]])
            tensors[name_b] = torch.cat([split_b.float(), fresh_b[:, kept:]], dim=1)
        return replace(new, tensors=tensors), diagnostics


@one_thread()
def split_product(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of `b @ a` of at most `rank`: sqrt(S) V^T [r, d_in] and U sqrt(S) [d_out, r].

    The QR decompositions b = Q_b R_b and a^T = Q_a R_a give b a = Q_b (R_b R_a^T) Q_a^T, so the SVD of the small matrix
    R_b R_a^T [R, R] gives the SVD of the product.

    Args:
        a: stacked factors, float64 [R, d_in].
        b: stacked factors, float64 [d_out, R].
        rank: the most components; the result has fewer if the others are negligible.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # vh is V^T: its rows are the components
    r = min(rank, int((s > s[0] * NEGLIGIBLE).sum()))
    root = s[:r].sqrt()
    return root[:, None] * (vh[:r] @ q_a.T), (q_b @ u[:, :r]) * root
