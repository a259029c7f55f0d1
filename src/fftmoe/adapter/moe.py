"""Defines the sparse mixture-of-experts adapter of one Transformer block (docs/math.md, Adapter).

Shape letters: T tokens, D model dim, H expert hidden units, S shared hidden units, M experts of the pool, R experts
held, K top-k. A block can hold the experts of C clients. Every weight then has C in front, and the tokens that come in
are those of one client after another, equally many for each.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fftmoe.adapter import compute as computes
from fftmoe.adapter.replace import replaced
from fftmoe.adapter.routing import Router, Routing
from fftmoe.adapter.stacked import stacked
from fftmoe.errors import InputError
from fftmoe.shown import count_of


class SparseMoe(nn.Module):
    """Computes `s * (E_shared(x) + sum_{m in S(x)} g_m(x) E_m(x))`, which is added to a block's feed-forward network.

    A new block holds the pool of M experts. A client replaces the pool by its resident experts (`load_experts`), any
    number of them, also none. The server keeps the pool and can use it as a client would (`view`). Masking the pool and
    slicing it give the same function.

    Args:
        num_experts: M.
        expert_dim: H, any positive number; multiples of 16 are fastest.
        dim: model dim D.
        top_k: experts per token.
        generator: source of the initial weights; the same generator gives the same pool in every process.
        scale: s.
        shared_dim: hidden units of the expert that every token uses in addition to the routed ones; 0 for no such
            expert.
        activation: "relu", "gelu" or "silu".
        gates: "detached", "renormalized" or "softmax".
        compute: "auto", "loop", "wide" or "grouped".
    """

    # Declared for type checkers; `resident` is a non-persistent buffer, so that it follows the module's device.
    resident: Tensor | None
    shared_up: nn.Parameter | None
    shared_down: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        expert_dim: int,
        dim: int,
        top_k: int,
        generator: torch.Generator,
        *,
        scale: float = 1.0,
        shared_dim: int = 0,
        activation: str = "gelu",
        gates: str = "detached",
        compute: str = "auto",
    ) -> None:
        super().__init__()
        _check_top_k(top_k, num_experts)
        self.router = Router(num_experts, dim, generator)
        up_MHD = torch.randn(num_experts, expert_dim, dim, generator=generator) * dim**-0.5
        self.up = nn.Parameter(up_MHD)
        # Zero, so that a model with an untrained adapter is exactly the backbone.
        self.down = nn.Parameter(torch.zeros(num_experts, expert_dim, dim))
        # The shared expert is drawn last, so that the routed experts are the same with it and without it.
        self.shared_up = self.shared_down = None
        if shared_dim:
            self.shared_up = nn.Parameter(torch.randn(shared_dim, dim, generator=generator) * dim**-0.5)
            self.shared_down = nn.Parameter(torch.zeros(shared_dim, dim))
        self.register_buffer("resident", None, persistent=False)
        self.top_k = top_k
        self.scale = scale
        self.activation = activation
        self.gates = gates
        self.compute = compute

    @property
    def num_experts(self) -> int:
        """Return the number of experts held here: M for the pool, R on a client; the shared expert is not counted."""
        return self.up.shape[-3]

    @property
    def clients(self) -> tuple[int, ...]:
        """Return `(C,)` where the experts of C clients are held, `()` otherwise."""
        return tuple(self.up.shape[:-3])

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D] in x's dtype, or in the dtype of autocast where that is on."""
        if self.num_experts == 0:
            return torch.zeros_like(x)
        x_TD = x.reshape(*self.clients, -1, x.shape[-1])
        routing: Routing = self.router(x_TD, self.top_k, self.resident, self.gates)
        y_TD = self.mix(x_TD, routing)
        if self.shared_up is not None and self.shared_down is not None:
            y_TD = y_TD + self.share(x_TD, self.shared_up, self.shared_down)
        return y_TD.reshape(x.shape)

    def mix(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Return the scaled output y_TD of the experts for tokens that have been routed."""
        # Autocast does not know grouped_mm, so every operand is cast here, for all implementations.
        output = _compute_dtype(x_TD)
        dtype = _mixture_dtype(x_TD.device, output)
        name = self._implementation(x_TD.shape[-2], x_TD.device, dtype)
        compute = partial(stacked, name) if self.clients else computes.COMPUTES[name]
        y_TD = compute(
            x_TD.to(dtype),
            routing.gates_TK.to(dtype),
            routing.expert_ids_TK,
            self.up.to(dtype),
            self.down.to(dtype),
            computes.ACTIVATIONS[self.activation],
        ).to(output)
        return y_TD if self.scale == 1.0 else self.scale * y_TD

    def _implementation(self, num_tokens: int, device: torch.device, dtype: torch.dtype) -> str:
        expert_dim, dim = self.up.shape[-2:]
        return computes.choose(self.compute, self.num_experts, expert_dim, self.top_k, dim, num_tokens, device, dtype)

    def check_computable(self, device: torch.device, dtype: torch.dtype) -> None:
        """Check that the stated implementation can compute these experts, before a model is used.

        Args:
            device: where the model computes. dtype: in which it multiplies.

        Raises:
            InputError: it cannot.
        """
        self._implementation(1, device, _mixture_dtype(device, dtype))

    def share(self, x_TD: Tensor, up_SD: Tensor, down_SD: Tensor) -> Tensor:
        """Return the shared expert's scaled output, `s * V^T activation(U x)`."""
        dtype = _compute_dtype(x_TD)
        y_TD = computes.ACTIVATIONS[self.activation](x_TD.to(dtype) @ up_SD.to(dtype).mT) @ down_SD.to(dtype)
        return y_TD if self.scale == 1.0 else self.scale * y_TD

    def load_shared(self, up: Tensor, down: Tensor) -> None:
        """Replace the shared expert by a copy of this one.

        Args:
            up: [S, D], or [C, S, D] for the shared experts of C clients.
            down: of the same shape.

        Raises:
            InputError: this block has no shared expert, or one with another model dim.
        """
        if self.shared_up is None or self.shared_down is None:
            raise InputError("this block has no shared expert to load weights into; set shared_dim")
        if up.shape != down.shape or up.dim() not in (2, 3) or up.shape[-1] != self.shared_up.shape[-1]:
            raise InputError(
                f"a shared expert of shapes up {tuple(up.shape)}, down {tuple(down.shape)} does not fit a block of "
                f"model dim={self.shared_up.shape[-1]}"
            )
        self.shared_up = replaced(self.shared_up, up)
        self.shared_down = replaced(self.shared_down, down)

    def load_experts(self, router: Tensor, up: Tensor, down: Tensor, top_k: int) -> None:
        """Replace the experts held here by copies of these R experts; with R = 0 the block adds nothing.

        The new parameters have the `requires_grad` of the old ones. A `view` that was set is removed.

        Args:
            router: [R, D]; for C clients every tensor has C in front.
            up: [R, H, D].
            down: [R, H, D].
            top_k: experts per token; at most R, ignored when R is 0.

        Raises:
            InputError: top_k is not in 1..R, or the shapes disagree with each other or with this block.
        """
        *clients, num_experts, dim = *router.shape[:-1], self.router.weight.shape[-1]
        expected = (*clients, num_experts, self.up.shape[-2], dim)
        if (
            router.shape != (*clients, num_experts, dim)
            or len(clients) > 1
            or up.shape != expected
            or down.shape != expected
        ):
            shapes = [tuple(tensor.shape) for tensor in (router, up, down)]
            raise InputError(
                f"experts of shapes router {shapes[0]}, up {shapes[1]}, down {shapes[2]} do not fit a block "
                f"with expert_dim={self.up.shape[-2]} and model dim={dim}"
            )
        if num_experts > 0:
            _check_top_k(top_k, num_experts)
        self.router.weight = replaced(self.router.weight, router)
        self.up = replaced(self.up, up)
        self.down = replaced(self.down, down)
        self.top_k = top_k
        self.resident = None

    def view(self, top_k: int, resident: Tensor | None = None) -> None:
        """Use the experts held here as a client with this `top_k` and these resident experts would.

        Args:
            top_k: experts per token; at most the number of resident experts.
            resident: bool [num_experts]; None: all experts.

        Raises:
            InputError: top_k is not in 1..number of residents, or the mask has another shape.
        """
        if resident is not None and (resident.shape != (self.num_experts,) or resident.dtype != torch.bool):
            raise InputError(
                f"resident must be a bool mask of {count_of(self.num_experts, 'expert')}, got {tuple(resident.shape)} "
                f"of {resident.dtype}"
            )
        if self.num_experts > 0:
            _check_top_k(top_k, self.num_experts if resident is None else int(resident.sum()))
        self.top_k = top_k
        self.resident = None if resident is None else resident.to(self.up.device, copy=True)


def _check_top_k(top_k: int, num_resident: int) -> None:
    if not 1 <= top_k <= num_resident:
        raise InputError(
            f"top_k={top_k} with {count_of(num_resident, 'resident expert')}; choose top_k between 1 and "
            f"{num_resident}, or hold more experts"
        )


def _mixture_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    # A CPU computes many small products faster in float32. A GPU has a grouped product in bfloat16 only.
    return torch.float32 if device.type == "cpu" and dtype == torch.bfloat16 else dtype


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
