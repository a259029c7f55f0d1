"""FLoRA: clients' factors are stacked, so their products are summed exactly (Wang et al., arXiv 2409.05976, 2024).

The sum is merged into the frozen weights, and clients begin each round with fresh factors.
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
    """`A = [p_1 A_1; ...; p_K A_K]`, `B = [B_1 ... B_K]`, so `B A = sum p_n B_n A_n` exactly, for any ranks.

    All that was merged so far is the global model: stacked factors `merged.{path}.A` and `.B` while they are smaller
    than the dense sum, from then on that, `merged.{path}.W` [d_out, d_in]. A client downloads all of it and not the
    last stack alone, because the server cannot know which rounds it has missed; so the download grows at first.
    The client's own factors begin anew in every round: A drawn from the seed, B zero.
    p_n is by examples, over the clients that adapt the module.
    """

    capabilities: ClassVar[Capabilities] = METHODS["flora"].capabilities

    def init(self, model: Any) -> ServerState:
        """The head; nothing has been merged."""
        return ServerState(round=0, tensors=head_tensors(model))

    def first_a(self, path: str, rank: int, round: int) -> Tensor:
        """Another A in every round, so that rounds explore unlike directions."""
        return initial_a(rank, self.modules[path][0], generator(self.seed, "lora", path, round))

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """The head, and what was merged into the client's modules."""
        own = own_modules(self.modules, plan.budget.blocks)
        return {name: t for name, t in state.tensors.items() if names.is_head(name) or names.merged_path(name) in own}

    @contextmanager
    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Iterator[DeltaSession]:
        """Trains fresh factors on the merged weights, which are put back afterwards."""
        with merged(model, products(tensors)), super().session(model, plan, tensors, client_state) as session:
            yield session

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Merge the cohort's stack; a module that nobody adapts is unchanged."""
        new, stacks, diagnostics = stack_updates(self, state, updates)
        tensors = dict(new.tensors)
        for path, stack in stacks.items():
            old = {part: tensors.pop(names.merged_tensor(path, part), None) for part in names.MERGED_PARTS}
            tensors |= {names.merged_tensor(path, part): t for part, t in merge(old, *stack).items()}
        return replace(new, tensors=tensors), diagnostics

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """What was merged, as LoRA factors of its rank, so that a saved adapter holds it; the backbone is untouched."""
        factors = self.start({}, budget, round=0)
        factors |= {path: as_factors(tensors, path) for path in merged_paths(tensors) if path in factors}
        load_factors(model, factors)
        load_head(model, tensors)


def stack_updates(
    method: LoraMethod, state: ServerState, updates: Iterable[ClientUpdate]
) -> tuple[ServerState, Stacks, dict[str, Any]]:
    """The next state with its head averaged, the stack of every module that anyone adapts, and the diagnostics.

    The factors of the whole cohort are held at once: they are the stack.
    """
    heads = DeltaMean(state)
    parts: dict[str, list[tuple[float, Tensor, Tensor]]] = defaultdict(list)
    for update in updates:
        heads.add(head_of(update))
        for path, (a, b) in method.received(state, update).items():
            parts[path].append((update.num_examples, a, b))
    new, diagnostics = heads.finish()
    return new, {path: stack(factors) for path, factors in parts.items()}, diagnostics


def stack(parts: Sequence[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A and B with `B A = sum p_n B_n A_n`; p_n = weight over the sum of weights, and multiplies A alone.

    Args:
        parts: weight, A_n [r_n, d_in], B_n [d_out, r_n] of each client.
    """
    total = sum(weight for weight, _, _ in parts)
    return torch.cat([weight / total * a for weight, a, _ in parts]), torch.cat([b for _, _, b in parts], dim=1)


def merge(old: dict[str, Tensor | None], a: Tensor, b: Tensor) -> Tensors:
    """What was merged so far and one more stack, float32: factors A and B, or W where that is smaller."""
    if old["W"] is not None:
        return {"W": (old["W"].double() + b @ a).float()}
    if old["A"] is not None and old["B"] is not None:
        a, b = torch.cat([old["A"].double(), a]), torch.cat([old["B"].double(), b], dim=1)
    if a.numel() + b.numel() < b.shape[0] * a.shape[1]:
        return {"A": a.float(), "B": b.float()}
    return {"W": (b @ a).float()}


def merged_paths(tensors: Tensors) -> list[str]:
    """The modules into which something was merged."""
    return sorted({path for name in tensors if (path := names.merged_path(name)) is not None})


def as_factors(tensors: Tensors, path: str) -> tuple[Tensor, Tensor]:
    """What was merged into a module as A and B; a dense W is its own product with the identity."""
    a, b, dense = (tensors.get(names.merged_tensor(path, part)) for part in names.MERGED_PARTS)
    if a is not None and b is not None:
        return a, b
    assert dense is not None, f"nothing was merged into {path}"
    d_out, d_in = dense.shape
    return (torch.eye(d_in), dense) if d_in <= d_out else (dense, torch.eye(d_out))


def products(tensors: Tensors) -> Tensors:
    """What was merged into each module, by path: dense float32 [d_out, d_in]."""
    dense = {path: tensors.get(names.merged_tensor(path, "W")) for path in merged_paths(tensors)}
    return {path: _multiply(*as_factors(tensors, path)) if w is None else w for path, w in dense.items()}


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    return (b.double() @ a.double()).float()
