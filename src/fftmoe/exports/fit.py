"""Computes the low-rank map that imitates a mixture of experts with the least squared error, in closed form.

The mixture adds D(x) to the output of a block's feed-forward network, whose last projection reads h(x). A shared update
of that projection adds to the same output, so its part is included in D. Among all W of rank r,

    W = argmin E |D - W h|^2 + ridge |W|^2

is P W', where W' is the solution of full rank and P projects on the first r principal directions of the fitted values
W' h (reduced-rank regression; Izenman, 1975). Only sums over tokens are needed.

Shape letters: T tokens, F inputs of the projection, D model dim, r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.adapter.low_rank import block_of_module, target_names
from fftmoe.adapter.shared_update import LowRank
from fftmoe.backbones import logits
from fftmoe.exports.check import Batch
from fftmoe.threads import one_thread

RIDGE = 1e-2  # relative to the mean square of an input


@dataclass
class TokenSums:
    """Holds sums over the pairs (h, D) of one block.

    Attributes:
        gram: of h h^T, float64 [F, F]. cross: of h D^T, float64 [F, D]. energy: of |D|^2. tokens: the number of pairs.
    """

    gram: Tensor
    cross: Tensor
    energy: float = 0.0
    tokens: int = 0

    @one_thread()
    def add(self, h_TF: Tensor, d_TD: Tensor) -> None:
        """Add further tokens."""
        self.gram += (h_TF.mT @ h_TF).double()
        self.cross += (h_TF.mT @ d_TD).double()
        self.energy += float(d_TD.double().square().sum())
        self.tokens += len(h_TF)


@one_thread()
def low_rank(sums: TokenSums, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors A [r, F] and B [D, r] of W = B A, float32."""
    num_inputs = len(sums.gram)
    ridge = RIDGE * sums.gram.diagonal().mean() * torch.eye(num_inputs, dtype=torch.float64)
    whole_FD = torch.linalg.solve(sums.gram + ridge, sums.cross)
    # The principal directions of the fitted values are the eigenvectors of C^T (G + ridge)^-1 C.
    _, directions_DD = torch.linalg.eigh(sums.cross.mT @ whole_FD)
    best_Dr = directions_DD[:, -rank:].flip(-1)
    return (whole_FD @ best_Dr).mT.float().contiguous(), best_Dr.float().contiguous()


@torch.no_grad()
def relative_error(sums: TokenSums, a: Tensor, b: Tensor) -> float:
    """Return the sum of |D - B A h|^2 over the sum of |D|^2: 0 for a perfect imitation, 1 for a map that gives 0."""
    map_FD = (b.double() @ a.double()).mT
    fitted = ((sums.gram @ map_FD) * map_FD).sum() - 2 * (sums.cross * map_FD).sum()
    return float(1 + fitted / sums.energy) if sums.energy else 0.0


def last_projections(model: Any) -> dict[int, str]:
    """Return the name of the last linear module in the feed-forward network of each adapted block.

    Names are those of the backbone without an adapter.
    """
    names = target_names(model, adapter.blocks(model), "feed-forward")
    return {block_of_module(name): bare(name) for name in names}


def last_shared(model: Any) -> dict[int, LowRank]:
    """Return the shared updates of those modules by block, where they have one."""
    names = last_projections(model)
    return {
        block_of_module(name): module
        for name, module in model.named_modules()
        if isinstance(module, LowRank) and owner(name) in names.values()
    }


def owner(name: str) -> str:
    """Return the module of the backbone that a shared update of this name changes."""
    return bare(name.partition(".moe_shared.")[0])


def bare(name: str) -> str:
    """Return the name that a module of an adapted model has in the backbone without an adapter."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


@torch.no_grad()
def collect(model: Any, batches: Sequence[Batch]) -> dict[int, TokenSums]:
    """Return the sums of every adapted block over all tokens of these batches except padding."""
    sums: dict[int, TokenSums] = {}
    with _reading(model) as (inputs, added):
        for batch in batches:
            logits(model, batch)
            for block in list(added):
                h_TF, d_TD = real_tokens(inputs[block], batch), real_tokens(added.pop(block), batch)
                sums.setdefault(block, _zero_sums(h_TF.shape[1], d_TD.shape[1])).add(h_TF, d_TD)
    return sums


def _zero_sums(num_inputs: int, dim: int) -> TokenSums:
    gram, cross = (torch.zeros(num_inputs, n, dtype=torch.float64) for n in (num_inputs, dim))
    return TokenSums(gram, cross)


BlockStates = dict[int, Tensor]


@contextmanager
def _reading(model: Any) -> Iterator[tuple[BlockStates, BlockStates]]:
    """Let a forward pass, within the context, fill two dictionaries with h [..., F] and D [..., D] of every block."""
    inputs: BlockStates = {}
    added: BlockStates = {}

    def reads(block: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: inputs.update({block: arguments[0]})

    def adds(block: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: added.update({block: added.pop(block, 0) + output})

    with ExitStack() as stack:
        for name in target_names(model, adapter.blocks(model), "feed-forward"):
            # The linear modules of a block are in the order of their use, and the last one overwrites the others.
            block, linear = block_of_module(name), model.get_submodule(name)
            stack.callback(linear.register_forward_pre_hook(reads(block)).remove)
        for block, module in (*adapter.blocks(model).items(), *last_shared(model).items()):
            stack.callback(module.register_forward_hook(adds(block)).remove)
        yield inputs, added


def real_tokens(states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the states [B, S, n] of the tokens that are not padding, [T, n]; for images the states of all tokens."""
    mask = batch.get("attention_mask")
    return states.flatten(0, -2) if mask is None else states[mask.bool()]
