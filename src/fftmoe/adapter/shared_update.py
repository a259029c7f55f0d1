"""Defines the adapter's shared low-rank updates: every token uses them, in a block's own linear layers.

Experts stand next to the feed-forward network and see one token at a time. What changes which tokens attend to which
must be here. The mathematics is that of `low_rank.py`, with the scale s = 2 whatever the rank.
"""

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from fftmoe.adapter.low_rank import (
    Linear,
    block_of_module,
    initial_b,
    initial_shared_a,
    linear_layer,
    linear_layers,
    linear_sizes,
    parameters_per_rank,
    within_block,
)
from fftmoe.adapter.replace import replaced
from fftmoe.adapter.tuner_layer import MoeTunerLayer
from fftmoe.errors import InputError
from fftmoe.records.names import shared_factors, shared_update

SHARED_SCALE = 2.0  # s; LoRA's alpha is usually twice the rank
SHARED_TARGETS = ("query-value", "all-linear")  # which linear layers of a block can have an update


class LowRank(nn.Module):
    """Maps x to s B A x, with A [r, d_in] uniform within 1 / sqrt(d_in) and B [d_out, r] zero at first.

    It can hold the weights of C clients, A [C, r, d_in] and B [C, d_out, r]. The rows of x are then the clients' rows,
    one client after another, equally many for each.
    """

    def __init__(self, d_in: int, d_out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.low_a = nn.Parameter(initial_shared_a(rank, d_in, generator))
        self.low_b = nn.Parameter(initial_b(rank, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., d_in] to [..., d_out], in x's dtype."""
        rows = x if self.low_a.dim() == 2 else x.reshape(len(self.low_a), -1, x.shape[-1])
        y = SHARED_SCALE * (rows @ self.low_a.to(x.dtype).mT @ self.low_b.to(x.dtype).mT)
        return y.reshape(*x.shape[:-1], -1)

    def load(self, low_a: Tensor, low_b: Tensor) -> None:
        """Replace A and B by copies of these, which may be the factors of C clients."""
        self.low_a, self.low_b = replaced(self.low_a, low_a), replaced(self.low_b, low_b)


class SharedProjection(nn.Module, MoeTunerLayer):
    """Wraps one linear layer of a block; each named adapter is a LowRank in `moe_shared`.

    Args:
        base_layer: the wrapped layer.
        block: its block index.
        name: its name within the block (`find_projections`).
    """

    adapter_layer_names: tuple[str, ...] = ("moe_shared",)

    def __init__(self, base_layer: Linear, block: int, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.block, self.name = block, name
        self.moe_shared = nn.ModuleDict()
        self.merged_adapters = []

    def update_layer(self, adapter_name: str, rank: int, generator: torch.Generator, inference_mode: bool) -> None:
        """Add the adapter `adapter_name`."""
        linear = self.base_layer
        low_rank = LowRank(*linear_sizes(linear), rank, generator)
        # With `low_cpu_mem_usage` PEFT makes it without memory and gives it the saved tensors; it cannot be moved then.
        if "meta" not in (linear.weight.device.type, low_rank.low_a.device.type):
            low_rank.to(linear.weight.device)
        self.moe_shared[adapter_name] = low_rank
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def active(self) -> list[LowRank]:
        """Return the active adapters of this layer."""
        found = (self.moe_shared[name] for name in self.active_adapters if name in self.moe_shared)
        return [low_rank for low_rank in found if isinstance(low_rank, LowRank)]

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Call the wrapped layer and add the output of the active adapters."""
        y = self.base_layer(x, *args, **kwargs)
        for low_rank in [] if self.disable_adapters else self.active():
            y = y + low_rank(x)
        return y


def find_projections(
    model: nn.Module, blocks: Collection[int], targets: str = "query-value"
) -> dict[str, tuple[int, str]]:
    """Return the linear layers of these blocks that get an update: path -> (block index, name within the block).

    The name is the last part of the path; where two layers of a block share it, it is the whole path below the block.

    Args:
        model: with or without adapters.
        blocks: block indices.
        targets: "query-value" or "all-linear".

    Raises:
        InputError: a block has no such layer, or lacks a query or a value layer with a usual name; GPT-2's layers for
            them are fused.
    """
    paths = linear_layers(model, blocks, targets)
    inner = {path: (block_of_module(path), within_block(path).replace("base_layer.", "")) for path in paths}
    endings = Counter((block, _last(below)) for block, below in inner.values())
    found = {
        path: (block, _last(below) if endings[block, _last(below)] == 1 else below)
        for path, (block, below) in inner.items()
    }
    _check_found(found, blocks, targets)
    return found


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _check_found(found: Mapping[str, tuple[int, str]], blocks: Collection[int], targets: str) -> None:
    names = {block: {name for owner, name in found.values() if owner == block} for block in blocks}
    if targets == "query-value":
        # Every usual name begins with the letter of what it is: query or value.
        missing = [block for block in sorted(names) if {name[0] for name in names[block]} != {"q", "v"}]
        lacking = "separate query and value projections"
    else:
        missing, lacking = [block for block in sorted(names) if not names[block]], "linear layers"
    if missing:
        raise InputError(
            f"blocks {missing} of this model have no {lacking} for a shared "
            "low-rank update; set shared_rank to 0, and shared_dim for a shared expert instead"
        )


def projection_parameters(model: nn.Module, block: int, rank: int, targets: str = "query-value") -> int:
    """Return how many parameters the shared updates of this rank have in one block;
    `targets` as for `find_projections`.
    """
    paths = find_projections(model, {block}, targets) if rank else ()
    linears = [linear for path in paths if (linear := linear_layer(model.get_submodule(path))) is not None]
    return rank * parameters_per_rank(map(linear_sizes, linears))


def low_ranks(model: nn.Module) -> dict[str, LowRank]:
    """Return the shared updates of the active adapter, by their prefix on the wire: `shared.{block}.{name}`."""
    layers = [m for m in model.modules() if isinstance(m, SharedProjection) and m.active()]
    ordered = sorted(layers, key=lambda layer: (layer.block, layer.name))
    return {shared_update(layer.block, layer.name): layer.active()[0] for layer in ordered}


def shared_projections(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the shared updates by their names on the wire, `shared.{block}.{name}.a` and `.b`."""
    parameters: dict[str, nn.Parameter] = {}
    for prefix, low_rank in low_ranks(model).items():
        parameters |= zip(shared_factors(prefix), (low_rank.low_a, low_rank.low_b), strict=True)
    return parameters
