"""Computes the same mixture of experts in three ways (docs/math.md, Adapter).

    y_t = sum_k gates[t, k] * E_{expert_ids[t, k]}(x_t),    E_m(x) = V_m^T act(U_m x)

`loop` is the specification; `wide` and `grouped` are the fast paths. The tests check that all three give the same
outputs and gradients. In each of them an expert that no token chose gets a gradient of exactly zero.

Shape letters: T tokens, D model dim, H expert hidden units, M experts, K top-k, F = M*H, N = T*K slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

# grouped_mm needs every stride to be a multiple of 16 bytes and takes these dtypes only.
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPED_ALIGNMENT_BYTES = 16

# The time in which `grouped` brings one slot to its expert and back, in hidden units that could be computed meanwhile.
# Arithmetic limits a CPU, moving bytes limits a GPU. `python benchmarks/crossover.py` measured the values for CPUs; the
# values for GPUs are estimated from the bandwidth.
SLOT_OVERHEAD = {
    ("cpu", torch.float32): 16,
    ("cpu", torch.bfloat16): 48,
    ("cuda", torch.float32): 512,
    ("cuda", torch.bfloat16): 512,
    ("cuda", torch.float16): 512,
}
# The time that one call of `grouped` takes for sorting and for its smaller products, in hidden units of one token;
# measured by `python benchmarks/crossover.py --tokens 16 32 64 128`.
CALL_OVERHEAD = {"cpu": 7000}


class Compute(Protocol):
    """Computes the mixture; all tensors share x's dtype except the int64 `expert_ids_TK`."""

    def __call__(
        self,
        x_TD: Tensor,
        gates_TK: Tensor,
        expert_ids_TK: Tensor,
        up_MHD: Tensor,
        down_MHD: Tensor,
        activation: Activation,
    ) -> Tensor:
        """Return the mixture's output y_TD."""
        ...


def loop(
    x_TD: Tensor,
    gates_TK: Tensor,
    expert_ids_TK: Tensor,
    up_MHD: Tensor,
    down_MHD: Tensor,
    activation: Activation,
) -> Tensor:
    """Compute one expert after another, each on the tokens that chose it: the specification."""
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
    """Compute one layer of width M*H with the hidden units of all experts, in which unchosen experts have a gate of
    zero.

    All arguments may have the same leading dimensions in front of those in their names: one mixture for each index.
    """
    num_experts, expert_dim = up_MHD.shape[-3:-1]
    gates_TM = gates_TK.new_zeros(*x_TD.shape[:-1], num_experts).scatter(-1, expert_ids_TK, gates_TK)
    hidden_TF = activation(x_TD @ up_MHD.flatten(-3, -2).mT)
    gated_TMH = hidden_TF.unflatten(-1, (num_experts, expert_dim)) * gates_TM[..., None]
    return gated_TMH.flatten(-2) @ down_MHD.flatten(-3, -2)


def grouped(
    x_TD: Tensor,
    gates_TK: Tensor,
    expert_ids_TK: Tensor,
    up_MHD: Tensor,
    down_MHD: Tensor,
    activation: Activation,
) -> Tensor:
    """Compute only the chosen experts: the routed slots are sorted by expert,
    and two grouped matrix products follow.
    """
    slots = sort_by_expert(expert_ids_TK, up_MHD.shape[0])
    x_ND = _Dispatch.apply(x_TD, slots)
    hidden_NH = activation(F.grouped_mm(x_ND, up_MHD.mT, offs=slots.ends_M))
    # The gate multiplies the H hidden units and not the D outputs: fewer numbers are kept for the backward pass.
    gated_NH = hidden_NH * gates_TK.flatten().index_select(0, slots.order_N)[:, None]
    return _Combine.apply(F.grouped_mm(gated_NH, down_MHD, offs=slots.ends_M), slots)


class Slots(NamedTuple):
    """Holds the N routed slots in the order of their experts.

    Attributes:
        order_N: the index of each among the T*K slots, int64.
        tokens_N: the token that each belongs to, int64.
        places_TK: where the slots of each token are among the N, int64.
        ends_M: where the slots of each expert end, int32. It stays on the device: reading it would wait for the GPU.
    """

    order_N: Tensor
    tokens_N: Tensor
    places_TK: Tensor
    ends_M: Tensor


def sort_by_expert(expert_ids_TK: Tensor, num_experts: int) -> Slots:
    """Sort the slots by expert; the slots of one expert stay in the order of their tokens."""
    ids_N = expert_ids_TK.flatten()
    order_N = ids_N.argsort(stable=True)
    experts_M = torch.arange(num_experts, device=ids_N.device)
    ends_M = torch.searchsorted(ids_N[order_N], experts_M, right=True, out_int32=True)
    places_TK = order_N.argsort().view_as(expert_ids_TK)
    return Slots(order_N, order_N // expert_ids_TK.shape[1], places_TK, ends_M)


# Two linear maps, each the transpose of the other. They are written out because autograd's backward would copy all N
# rows once more for each of them, and on CUDA would add at repeated indices in another order in every run.


class _Dispatch(torch.autograd.Function):
    """Maps x_TD to x_ND: the row of a token, once for each of its slots."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return x_TD.index_select(0, slots.tokens_N)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x_grad_ND,) = grad_outputs
        return F.embedding_bag(ctx.slots.places_TK, x_grad_ND, mode="sum"), None


class _Combine(torch.autograd.Function):
    """Maps y_ND to y_TD: the sum over the slots of each token."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, slots: Slots) -> Tensor:
        ctx.slots = slots
        return F.embedding_bag(slots.places_TK, y_ND, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (y_grad_TD,) = grad_outputs
        return y_grad_TD.index_select(0, ctx.slots.tokens_N), None


COMPUTES: dict[str, Compute] = {"loop": loop, "wide": wide, "grouped": grouped}


def choose(
    compute: str,
    num_experts: int,
    expert_dim: int,
    top_k: int,
    dim: int,
    num_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Return the implementation to use: `compute` itself, or for "auto" the faster of `wide` and `grouped`.

    For each token `wide` computes M*H hidden units. `grouped` computes K*H hidden units and moves K rows; moving one
    row takes as long as SLOT_OVERHEAD hidden units, and each call takes CALL_OVERHEAD in addition.

    Args:
        compute: "auto" or the name of an implementation.
        num_experts: M.
        expert_dim: H.
        top_k: K.
        dim: D.
        num_tokens: T; for several clients in one batch, the tokens of one client.
        device: where the mixture is computed.
        dtype: in which it is computed.

    Raises:
        InputError: `compute` is unknown, or it is "grouped", which cannot take this shape or dtype.
    """
    if compute != "auto":
        check_compute(compute)
        if compute == "grouped":
            _check_grouped(expert_dim, dim, dtype)
        return compute
    # torch.compile (2.13) fails on a grouped product in other dtypes, because it has no shapes for it.
    unknown_to_compiler = torch.compiler.is_compiling() and dtype != torch.bfloat16
    if unknown_to_compiler or not _fits_grouped(expert_dim, dim, dtype):
        return "wide"
    overhead = SLOT_OVERHEAD.get((device.type, dtype), SLOT_OVERHEAD["cpu", torch.float32])
    grouped_units = top_k * (expert_dim + overhead) * num_tokens + CALL_OVERHEAD.get(device.type, 0)
    return "wide" if num_experts * expert_dim * num_tokens <= grouped_units else "grouped"


def check_compute(compute: str) -> None:
    """Raise InputError unless `compute` is "auto" or the name of an implementation."""
    valid = ("auto", *COMPUTES)
    if compute not in valid:
        raise InputError(f"unknown compute {compute!r}{did_you_mean(compute, valid)}")


def _check_grouped(expert_dim: int, dim: int, dtype: torch.dtype) -> None:
    if not _fits_grouped(expert_dim, dim, dtype):
        multiple = GROUPED_ALIGNMENT_BYTES // dtype.itemsize
        raise InputError(
            f"compute='grouped' needs float32, bfloat16 or float16, and here multiples of {multiple}; got {dtype} with "
            f"expert_dim={expert_dim} and model dim={dim}. Use compute='wide' or 'auto', or a multiple of 16."
        )


def _fits_grouped(expert_dim: int, dim: int, dtype: torch.dtype) -> bool:
    if dtype not in GROUPED_DTYPES:
        return False
    multiple = GROUPED_ALIGNMENT_BYTES // dtype.itemsize
    return expert_dim % multiple == 0 and dim % multiple == 0
