"""The shared part of the adapter in a block's own linear layers: low-rank updates that every token uses.

Experts sit beside the feed-forward network and see one token; what changes which tokens attend to which sits here.
Its form is LoRA's (arXiv 2106.09685), y = W x + s B A x, with B starting at zero.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NoReturn

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fftmoe.adapter.replace import replaced
from fftmoe.errors import InputError

SCALE = 2.0  # s; LoRA's alpha is mostly twice the rank
TARGETS = ("query-value", "all-linear")  # which linear layers of a block have an update
_QUERY_VALUE = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin")
_IN_BLOCK = r"(?:.*?\.)?(\d+)\.(.+)"


class MoeTunerLayer(BaseTunerLayer):
    """Any module that the adapter wraps."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuses: which experts act depends on the input, so no fixed weight equals the adapter."""
        raise InputError(
            "a mixture-of-experts adapter cannot be merged into the backbone, because the experts it uses "
            "depend on the input; keep it attached, or call unload() to drop it"
        )

    def unmerge(self) -> None:
        """Nothing is ever merged."""


class LowRank(nn.Module):
    """x -> s B A x, A [r, d_in] uniform within 1 / sqrt(d_in), B [d_out, r] zero.

    With the weights of C clients, A [C, r, d_in] and B [C, d_out, r], x holds the clients' rows one after another.
    """

    def __init__(self, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.low_a = nn.Parameter((2 * torch.rand(rank, d_in, generator=generator) - 1) * d_in**-0.5)
        self.low_b = nn.Parameter(torch.zeros(d_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] to [..., d_out], in x's dtype."""
        rows = x if self.low_a.dim() == 2 else x.reshape(len(self.low_a), -1, x.shape[-1])
        y = SCALE * (rows @ self.low_a.to(x.dtype).mT @ self.low_b.to(x.dtype).mT)
        return y.reshape(*x.shape[:-1], -1)

    def load(self, low_a: Tensor, low_b: Tensor) -> None:
        """Replaces A and B by copies of these, which may be those of C clients."""
        self.low_a, self.low_b = replaced(self.low_a, low_a), replaced(self.low_b, low_b)


class SharedProjection(nn.Module, MoeTunerLayer):
    """Wraps one linear layer of a block; each named adapter is a LowRank in `moe_shared`.

    Args:
        base_layer: the wrapped layer.
        block: its block index. name: what it is called there (`find_projections`).
    """

    adapter_layer_names: tuple[str, ...] = ("moe_shared",)

    def __init__(self, base_layer: nn.Linear, block: int, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.block, self.name = block, name
        self.moe_shared = nn.ModuleDict()
        self.merged_adapters = []

    def update_layer(self, adapter_name: str, rank: int, generator: torch.Generator, inference_mode: bool) -> None:
        """Adds the adapter `adapter_name`."""
        linear = self.base_layer
        low_rank = LowRank(linear.in_features, linear.out_features, rank, generator)
        if linear.weight.device.type != "meta":
            low_rank.to(linear.weight.device)
        self.moe_shared[adapter_name] = low_rank
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def active(self) -> list[LowRank]:
        """The active adapters of this projection."""
        found = (self.moe_shared[name] for name in self.active_adapters if name in self.moe_shared)
        return [low_rank for low_rank in found if isinstance(low_rank, LowRank)]

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Calls the wrapped projection and adds the active adapters' output."""
        y = self.base_layer(x, *args, **kwargs)
        for low_rank in [] if self.disable_adapters else self.active():
            y = y + low_rank(x)
        return y


def find_projections(
    model: nn.Module, blocks: Collection[int], targets: str = "query-value"
) -> dict[str, tuple[int, str]]:
    """The linear layers of these blocks that are to have an update: module name -> (block index, what it is called).

    A layer is called by the last part of its name, or by all of it below the block where another one ends so too.
    Those that an adapter wraps already count as well, so that another one can join it.

    Args:
        targets: "query-value", or "all-linear".

    Raises:
        InputError: a block has none, or lacks query or value by a known name, as GPT-2's, which are fused.
    """
    own = _of_adapters(model)
    paths = {
        name: (int(match[1]), match[2].replace("base_layer.", ""))
        for name, module in model.named_modules()
        if (match := re.fullmatch(_IN_BLOCK, name)) and int(match[1]) in blocks
        if _linear(module) and not name.startswith(own)
    }
    if targets == "query-value":
        paths = {name: found for name, found in paths.items() if _last(found[1]) in _QUERY_VALUE}
    endings = Counter((block, _last(path)) for block, path in paths.values())
    found = {n: (block, _last(p) if endings[block, _last(p)] == 1 else p) for n, (block, p) in paths.items()}
    _check_found(found, blocks, targets)
    return found


def _of_adapters(model: nn.Module) -> tuple[str, ...]:
    """How the names begin of what adapters add, and of a linear layer that one wraps, which counts as the wrapper."""
    own: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            own += [f"{name}.{part}." for part in module.adapter_layer_names]
            own += [f"{name}.base_layer"] if _linear(module) else []
    return tuple(own)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _check_found(found: Mapping[str, tuple[int, str]], blocks: Collection[int], targets: str) -> None:
    names = {block: {called for owner, called in found.values() if owner == block} for block in blocks}
    if targets == "query-value":
        # Every known name begins with the letter of what it is.
        missing = [block for block in sorted(names) if {called[0] for called in names[block]} != {"q", "v"}]
        lacking = "separate query and value projections"
    else:
        missing, lacking = [block for block in sorted(names) if not names[block]], "linear layers of torch's own kind"
    if missing:
        raise InputError(
            f"blocks {missing} of this model have no {lacking} for a shared "
            "low-rank update; set shared_rank to 0, and shared_dim for a shared expert instead"
        )


def _linear(module: nn.Module | BaseTunerLayer) -> nn.Linear | None:
    """The linear layer that a module is or wraps."""
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner if isinstance(inner, nn.Linear) else None


def projection_parameters(model: nn.Module, block: int, rank: int, targets: str = "query-value") -> int:
    """Parameters that shared updates of this rank have in one block."""
    names = find_projections(model, {block}, targets) if rank else ()
    linears = [linear for name in names if (linear := _linear(model.get_submodule(name)))]
    return sum(rank * (linear.in_features + linear.out_features) for linear in linears)


def low_ranks(model: nn.Module) -> dict[str, LowRank]:
    """The active adapter's shared updates, by their prefix on the wire: `shared.{block}.{name}`."""
    layers = [m for m in model.modules() if isinstance(m, SharedProjection) and m.active()]
    ordered = sorted(layers, key=lambda layer: (layer.block, layer.name))
    return {f"shared.{layer.block}.{layer.name}": layer.active()[0] for layer in ordered}


def shared_projections(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the shared updates by their names on the wire, `shared.{block}.{name}.a` and `.b`."""
    parameters: dict[str, nn.Parameter] = {}
    for prefix, low_rank in low_ranks(model).items():
        parameters |= {f"{prefix}.a": low_rank.low_a, f"{prefix}.b": low_rank.low_b}
    return parameters
