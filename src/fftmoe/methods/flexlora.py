"""FlexLoRA: the weighted sum of products, divided again by an SVD (Bai et al., arXiv 2402.11505, NeurIPS 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fftmoe.methods.flora import stack_updates
from fftmoe.methods.lora import LoraMethod
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import ClientUpdate, ServerState, names

# Components below the float32 rounding of the largest one are nothing that float32 factors could hold.
NEGLIGIBLE = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FlexLora(LoraMethod):
    """`dW = sum p_n B_n A_n = U S V^T`; the server keeps the r_max largest components, client n gets the first r_n.

    `B = U sqrt(S)` and `A = sqrt(S) V^T`, so `B A` of the first r components is dW's best approximation of rank r.
    How the paper divides S could not be checked; the even division gives factors of like size. A component
    that is zero keeps the initial A with B = 0: with both factors zero it could never be trained. p_n is by
    examples, over the clients that adapt the module; one that nobody adapts is unchanged.
    """

    capabilities: ClassVar[Capabilities] = METHODS["flexlora"].capabilities

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """The SVD of the cohort's stack, module by module."""
        new, stacks, diagnostics = stack_updates(self, state, updates)
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


def split_product(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of `b @ a` of at most `rank`: sqrt(S) V^T [r, d_in], U sqrt(S) [d_out, r].

    The product's SVD is that of the two triangles of the factors' QR decompositions, which are as small as the
    stack: b = Q_b R_b, a^T = Q_a R_a, so b a = Q_b (R_b R_a^T) Q_a^T.

    Args:
        a: float64 [R, d_in].
        b: float64 [d_out, R].
        rank: at most this many components; fewer where the others are negligible.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)  # vh is V^T: its rows are the components
    r = min(rank, int((s > s[0] * NEGLIGIBLE).sum()))
    root = s[:r].sqrt()
    return root[:, None] * (vh[:r] @ q_a.T), (q_b @ u[:, :r]) * root
