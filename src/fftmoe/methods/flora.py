"""FLoRA stacks the clients' factors, so that their products add up exactly (Wang et al., arXiv 2409.05976, 2024).

With A = [p_1 A_1; ...; p_K A_K] and B = [B_1 ... B_K], the product B A equals sum_n p_n B_n A_n for any ranks. The
server adds the product to the frozen weights, and clients start each round with fresh factors.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fftmoe.adapter.low_rank import initial_a
from fftmoe.backbones.lora import load_factors, merged
from fftmoe.methods.deltas import DeltaMean, DeltaSession, head_of
from fftmoe.methods.lora import LoraMethod, own_modules
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.methods.shared_head import head_tensors, load_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, ServerState, Tensors, names
from fftmoe.rng import generator

Stacks = dict[str, tuple[Tensor, Tensor]]  # path -> A [sum of ranks, d_in], B [d_out, sum of ranks], float64


@dataclass(frozen=True)
class FLora(LoraMethod):
    """`FLora` keeps the sum of all products so far as the global model.

    The sum is stored as stacked factors `merged.{path}.A` and `merged.{path}.B` while they are smaller than the dense
    sum, and as the dense sum `merged.{path}.W` [d_out, d_in] afterwards. A client downloads the whole sum, because the
    server does not know which rounds the client has missed. The download therefore grows in the first rounds. In every
    round a client trains fresh factors: A drawn from the seed, and B zero. The weights p_n are proportional to the
    numbers of examples of the clients that adapt the module.
    """

    capabilities: ClassVar[Capabilities] = METHODS["flora"].capabilities

    def init(self, model: Any) -> ServerState:
        """Return a state with the head only, because nothing has been merged yet."""
        return ServerState(round=0, tensors=head_tensors(model))

    def first_a(self, path: str, rank: int, round: int) -> Tensor:
        """Return the initial A, which differs from round to round so that rounds explore different directions."""
        return initial_a(rank, self.modules[path][0], generator(self.seed, "lora", path, round))

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return the head, and the merged factors or sums of the client's modules."""
        own = own_modules(self.modules, plan.budget.blocks)
        return {name: t for name, t in state.tensors.items() if names.is_head(name) or names.merged_path(name) in own}

    @contextmanager
    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Iterator[DeltaSession]:
        """Train fresh factors on the merged weights, and restore the original weights afterwards."""
        with merged(model, merged_products(tensors)), super().session(model, plan, tensors, client_state) as session:
            yield session

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Add the cohort's stack to the merged sum; a module that no client adapts stays unchanged."""
        new, stacks, diagnostics = stack_cohort(self, state, updates)
        tensors = dict(new.tensors)
        for path, stack in stacks.items():
            old = {part: tensors.pop(names.merged_tensor(path, part), None) for part in names.MERGED_PARTS}
            tensors |= {names.merged_tensor(path, part): t for part, t in add_stack(old, *stack).items()}
        return replace(new, tensors=tensors), diagnostics

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Load the merged sum as LoRA factors, so that a saved adapter contains it; the backbone stays unchanged."""
        factors = self.start({}, budget, round=0)
        factors |= {path: merged_factors(tensors, path) for path in merged_paths(tensors) if path in factors}
        load_factors(model, factors)
        load_head(model, tensors)


def stack_cohort(
    method: LoraMethod, state: ServerState, updates: Iterable[ClientUpdate]
) -> tuple[ServerState, Stacks, dict[str, Any]]:
    """Average the heads, and stack the factors of every module that a client adapts.

    Returns:
        The next state, the stacks by path, and the diagnostics. The stacks take the memory of all of the cohort's
        factors.
    """
    heads = DeltaMean(state)
    parts: dict[str, list[tuple[float, Tensor, Tensor]]] = defaultdict(list)
    for update in updates:
        heads.add(head_of(update))
        for path, (a, b) in method.received(state, update).items():
            parts[path].append((update.num_examples, a, b))
    new, diagnostics = heads.finish()
    return new, {path: stack_factors(factors) for path, factors in parts.items()}, diagnostics


def stack_factors(parts: Sequence[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack the factors of several clients to A and B with B A = sum_n p_n B_n A_n.

    Here p_n is the client's weight divided by the sum of the weights. It multiplies A_n, and B_n stays as it is.

    Args:
        parts: weight, A_n [r_n, d_in], B_n [d_out, r_n] of each client.
    """
    total = sum(weight for weight, _, _ in parts)
    return torch.cat([weight / total * a for weight, a, _ in parts]), torch.cat([b for _, _, b in parts], dim=1)


def add_stack(old: dict[str, Tensor | None], a: Tensor, b: Tensor) -> Tensors:
    """Add one stack to the merged sum of a module, float32: as factors A and B, or as W if that is smaller."""
    if old["W"] is not None:
        return {"W": (old["W"].double() + b @ a).float()}
    if old["A"] is not None and old["B"] is not None:
        a, b = torch.cat([old["A"].double(), a]), torch.cat([old["B"].double(), b], dim=1)
    if a.numel() + b.numel() < b.shape[0] * a.shape[1]:
        return {"A": a.float(), "B": b.float()}
    return {"W": (b @ a).float()}


def merged_paths(tensors: Tensors) -> list[str]:
    """Return the paths of the modules that have a merged sum."""
    return sorted({path for name in tensors if (path := names.merged_path(name)) is not None})


def merged_factors(tensors: Tensors, path: str) -> tuple[Tensor, Tensor]:
    """Return the merged sum of a module as factors A and B; for a dense W, one of them is the identity."""
    a, b, dense = (tensors.get(names.merged_tensor(path, part)) for part in names.MERGED_PARTS)
    if a is not None and b is not None:
        return a, b
    assert dense is not None, f"nothing was merged into {path}"
    d_out, d_in = dense.shape
    return (torch.eye(d_in), dense) if d_in <= d_out else (dense, torch.eye(d_out))


def merged_products(tensors: Tensors) -> Tensors:
    """Return the merged sum of each module by path, dense float32 [d_out, d_in]."""
    dense = {path: tensors.get(names.merged_tensor(path, "W")) for path in merged_paths(tensors)}
    return {path: _multiply(*merged_factors(tensors, path)) if w is None else w for path, w in dense.items()}


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return (b.double() @ a.double()).float()
