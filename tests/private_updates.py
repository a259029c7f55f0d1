"""Random updates of a small model, summed privately, for the tests of sums, noise and messages.

Sizes: M experts of H x D in one block, a shared expert of S x D, a head of C x D.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fftmoe.methods.private import Noise, PrivateSum
from fftmoe.records import ClientUpdate, ServerState, Tensors, Training
from fftmoe.records.names import block_of
from fftmoe.rng import generator, numpy_generator

M, H, D, S, C = 7, 3, 5, 2, 3
SHAPES = {
    "blocks.1.router": torch.Size((M, D)),
    "blocks.1.up": torch.Size((M, H, D)),
    "blocks.1.down": torch.Size((M, H, D)),
    "shared.1.up": torch.Size((S, D)),
    "head.weight": torch.Size((C, D)),
}
CLIP = 0.5
TRAINING = Training(
    batch_size=3, learning_rate=0.01, head_learning_rate=0.5, local_steps=1, private=True, clip_norm=CLIP
)
UPLOADS = ("float32", "bfloat16", "int8")
seeds = st.integers(0, 2**31)


@dataclass
class Head:
    """A method that trains one tensor, and adds the mean of its changes."""

    merge: Any = None

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        total = self.merge({})
        for one in updates:
            total.add(one)
        deltas, _ = total.mean()
        moved = {name: tensor + deltas[name].float() for name, tensor in state.tensors.items()}
        return replace(state, round=state.round + 1, tensors=moved), {}


def nothing(*_: Any) -> None:
    """Stands in for a ledger."""


def no_noise(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def seeded(seed: int) -> Callable[[Sequence[int]], torch.Tensor]:
    source = generator(seed, "noise")
    return lambda shape: torch.randn(*shape, dtype=torch.float64, generator=source)


def counts(expert: float, other: float) -> Tensors:
    """The same number of contributors for every expert and for the other tensors."""
    return {
        name: torch.full((1 if block_of(name) is None else shape[0],), expert if "blocks" in name else other).double()
        for name, shape in SHAPES.items()
    }


def noise_of(std: float, draw: Any = no_noise, expected: Tensors | None = None, clients: float = 4.0) -> Noise:
    return Noise(std, counts(2.0, 4.0) if expected is None else expected, clients, nothing, draw)


def update(client_id: int, held: Sequence[int], seed: int, scale: float = 1.0) -> ClientUpdate:
    """Make a private update of these experts with about this norm."""
    source = generator(seed, "update", client_id)
    rows = {name: (len(held), *shape[1:]) if block_of(name) else tuple(shape) for name, shape in SHAPES.items()}
    tensors = {name: scale * torch.randn(shape, generator=source) for name, shape in rows.items()}
    return ClientUpdate(1, client_id, 1, tensors, {1: tuple(held)})


def cohort(seed: int, num_clients: int, scales: Sequence[float] = ()) -> list[ClientUpdate]:
    random = numpy_generator(seed, "held")
    held = [np.flatnonzero(random.random(M) < random.random()).tolist() for _ in range(num_clients)]
    return [
        update(n, own, seed, scale)
        for n, (own, scale) in enumerate(zip(held, scales or [1.0] * num_clients, strict=True))
    ]


def summed(updates: Sequence[ClientUpdate], **settings: Any) -> PrivateSum:
    total = PrivateSum(SHAPES, **{"min_contributors": 1, "clip_norm": CLIP, **settings})
    for one in updates:
        total.add(one)
    return total
