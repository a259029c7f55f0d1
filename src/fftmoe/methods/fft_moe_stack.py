"""Trains FFT-MoE for several clients in one batch: the fast path of `fft_moe.FftMoeSession`, which is its
specification.

The clients share the frozen backbone, which computes one batch of all their examples. Every other tensor has the
clients C as its first dimension, and each client gets the gradient that it would get if it trained by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of, head_inputs, logits
from fftmoe.methods.balance import Balance, LocalResult, LocalSettings
from fftmoe.methods.expert_loading import load_experts, load_projections
from fftmoe.methods.shared_head import load_head
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, names


class FftMoeStack:
    """Trains C clients that have the same budget; used as a context manager.

    Args:
        plans: one for each client.
        tensors: what each client trains, with its effective router rows, and the load of its experts.
        finish: from the position of a client and the result of its training to its update and its new state.
    """

    def __init__(
        self,
        model: Any,
        plans: Sequence[ClientPlan],
        tensors: Sequence[Tensors],
        settings: LocalSettings,
        finish: Callable[[int, LocalResult], tuple[ClientUpdate, Tensors]],
    ) -> None:
        stacked = {name: torch.stack([own[name] for own in tensors]) for name in tensors[0]}
        self.plans, self._finish = plans, finish
        self.balance = Balance.of(settings, plans[0].experts, stacked, device_of(model))
        # A fixed head is the same for all clients. Trained heads stay outside of the model, which has room for one.
        fixed = load_head(model, tensors[0])
        self.head = (
            {n: nn.Parameter(stacked[n].to(p)) for n, p in fixed.items()} if plans[0].training.train_head else {}
        )
        self.parameters: Mapping[str, nn.Parameter] = {
            **load_experts(model, stacked, plans[0].experts, plans[0].budget.top_k),
            **load_projections(model, stacked),
            **self.head,
        }
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> Self:
        self.read_routing = self._stack.enter_context(adapter.record_routing(self._model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits [C, B, classes]; each client uses its own head."""
        clients = len(self.plans)
        if not self.head:
            return logits(self._model, batch).unflatten(0, (clients, -1))
        inputs_CBF = head_inputs(self._model, batch).unflatten(0, (clients, -1))
        return torch.baddbmm(self.head[names.HEAD_BIAS][:, None], inputs_CBF, self.head[names.HEAD_WEIGHT].mT)

    def penalty(self, mask: Tensor) -> Tensor:
        """Return the auxiliary losses [C] of the last forward pass; called once per step."""
        return self.balance.penalty(self.read_routing(), mask)

    def finish(self, position: int, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return the present update of the client at `position`, and its new state."""
        c = position
        result = LocalResult(
            deltas={name: (p.detach()[c] - self.start[name][c]).cpu() for name, p in self.parameters.items()},
            slots={block: sums[c].cpu() for block, sums in self.balance.slots.items()},
            probs={block: sums[c].cpu() for block, sums in self.balance.probs.items()},
            num_examples=num_examples,
            metrics=metrics,
        )
        return self._finish(c, result)
