"""Three ways to compute the same mixture of experts (docs/math.md, Adapter).

    y_t = sum_k gates[t, k] * E_{expert_ids[t, k]}(x_t),    E_m(x) = V_m^T act(U_m x)

`loop` is the specification, `wide` and `grouped` are the fast paths; the tests hold all three to the same
outputs and gradients. An expert that no token chose gets exactly zero gradient in each of them.

Shape letters: T tokens, D model dim, H expert hidden units, M experts, K top-k, F = M*H, N = T*K slots.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

# grouped_mm needs every stride to be a multiple of 16 bytes and takes these dtypes only.
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_ALIGNMENT_BYTES = 16


class Compute(Protocol):
    """One implementation of the mixture; all tensors share x's dtype except the int64 `expert_ids_TK`."""

    def __call__(
        self,
        x_TD: Tensor,
        gates_TK: Tensor,
        expert_ids_TK: Tensor,
        up_MHD: Tensor,
        down_MHD: Tensor,
        activation: Activation,
    ) -> Tensor:
        """Returns y_TD."""
        ...


def loop(
    x_TD: Tensor,
    gates_TK: Tensor,
    expert_ids_TK: Tensor,
    up_MHD: Tensor,
    down_MHD: Tensor,
    activation: Activation,
) -> Tensor:
    """The specification: one expert after another, each on the tokens that chose it."""
    y_TD = torch.zeros_like(x_TD)
    for expert in range(up_MHD.shape[0]):
        tokens, slots = torch.where(expert_ids_TK == expert)
        if tokens.numel() == 0:
            continue
        hidden = activation(x_TD[tokens] @ up_MHD[expert].T)
        y_TD = y_TD.index_add(0, tokens, gates_TK[tokens, slots, None] * (hidden @ down_MHD[expert]))
    return y_TD


def wide(
    x_TD: Tensor,
    gates_TK: Tensor,
    expert_ids_TK: Tensor,
    up_MHD: Tensor,
    down_MHD: Tensor,
    activation: Activation,
) -> Tensor:
    """All experts' hidden units at once: one layer of width M*H, the unchosen experts gated to zero."""
    num_experts, expert_dim, _ = up_MHD.shape
    gates_TM = gates_TK.new_zeros(x_TD.shape[0], num_experts).scatter(1, expert_ids_TK, gates_TK)
    hidden_TF = activation(x_TD @ up_MHD.flatten(0, 1).T)
    gated_TMH = hidden_TF.unflatten(1, (num_experts, expert_dim)) * gates_TM[:, :, None]
    return gated_TMH.flatten(1) @ down_MHD.flatten(0, 1)


def grouped(
    x_TD: Tensor,
    gates_TK: Tensor,
    expert_ids_TK: Tensor,
    up_MHD: Tensor,
    down_MHD: Tensor,
    activation: Activation,
) -> Tensor:
    """Only the chosen experts: routed slots sorted by expert, then two grouped matrix products.

    Rows move by permutations and a sum over K, never by adding at repeated indices, so that the result and
    the gradients are the same on every run, also on CUDA.
    """
    num_tokens, top_k = expert_ids_TK.shape
    ids_N = expert_ids_TK.flatten()
    order_N = ids_N.argsort(stable=True)
    # Offsets stay on the device: a count on the host would wait for the GPU.
    experts_M = torch.arange(up_MHD.shape[0], device=ids_N.device)
    offsets_M = torch.searchsorted(ids_N[order_N], experts_M, right=True, out_int32=True)
    x_ND = x_TD[:, None].expand(-1, top_k, -1).flatten(0, 1).index_select(0, order_N)
    hidden_NH = activation(F.grouped_mm(x_ND, up_MHD.transpose(1, 2), offs=offsets_M))
    # The gate goes on the H-wide hidden units, not on the D-wide output: fewer numbers to keep.
    gated_NH = hidden_NH * gates_TK.flatten().index_select(0, order_N)[:, None]
    y_ND = F.grouped_mm(gated_NH, down_MHD, offs=offsets_M).index_select(0, order_N.argsort())
    return y_ND.unflatten(0, (num_tokens, top_k)).sum(1)


COMPUTES: dict[str, Compute] = {"loop": loop, "wide": wide, "grouped": grouped}


def choose(
    compute: str,
    num_experts: int,
    expert_dim: int,
    top_k: int,
    dim: int,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """The implementation to use: `compute` itself, or for "auto" the faster of `wide` and `grouped`.

    A GPU is bound by moved bytes, so `wide` wins while M*H <= 512*K; a CPU is bound by arithmetic, so it wins
    only while few experts are wasted (M/K small). Both rules were measured.

    Raises:
        InputError: `compute` is unknown, or "grouped" was asked for and cannot take this shape or dtype.
    """
    if compute != "auto":
        check_compute(compute)
        if compute == "grouped" and not _fits_grouped(expert_dim, dim, dtype):
            multiple = GROUPED_ALIGNMENT_BYTES // dtype.itemsize
            raise InputError(
                f"compute='grouped' needs float32, bfloat16 or float16, here multiples of {multiple}; "
                f"got expert_dim={expert_dim} and model dim={dim}. "
                "Use compute='wide' or 'auto', or a multiple of 16."
            )
        return compute
    if not _fits_grouped(expert_dim, dim, dtype):
        return "wide"
    if device.type == "cuda":
        return "wide" if num_experts * expert_dim <= 512 * top_k else "grouped"
    return "wide" if num_experts / top_k <= _cpu_threshold(expert_dim) else "grouped"


def check_compute(compute: str) -> None:
    """Raises InputError unless `compute` is "auto" or the name of an implementation."""
    valid = ("auto", *COMPUTES)
    if compute not in valid:
        raise InputError(f"unknown compute {compute!r}{did_you_mean(compute, valid)}")


def _fits_grouped(expert_dim: int, dim: int, dtype: torch.dtype) -> bool:
    if dtype not in GROUPED_DTYPES:
        return False
    multiple = GROUPED_ALIGNMENT_BYTES // dtype.itemsize
    return expert_dim % multiple == 0 and dim % multiple == 0


def _cpu_threshold(expert_dim: int) -> float:
    # Largest M/K at which `wide` was measured faster, at H = 16, 32 and 64.
    if expert_dim <= 16:
        return 4.0
    return 2.5 if expert_dim <= 32 else 1.6
