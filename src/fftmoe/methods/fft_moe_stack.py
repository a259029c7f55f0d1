"""FFT-MoE on several clients at once: their experts side by side on one backbone.

What the clients share, the frozen backbone, then computes on one batch of all their examples; of what they do not
share every tensor has the clients C in front. Each client's gradient is its own, as if it trained alone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of, head_inputs, logits
from fftmoe.methods.balance import Balance, LocalSettings
from fftmoe.methods.fft_moe_client import Trained, UpdateMaker, install_experts, load_of, own_routers
from fftmoe.methods.shared_head import load_head
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, names


class FftMoeStack:
    """The training of C clients with the same budget. A context manager.

    Args:
        plans, downloads, states: one for each client.
    """

    def __init__(
        self,
        model: Any,
        plans: Sequence[ClientPlan],
        downloads: Sequence[Tensors],
        states: Sequence[Tensors],
        settings: LocalSettings,
        num_experts: int,
    ) -> None:
        own = [own_routers(*each) for each in zip(plans, downloads, states, strict=True)]
        stacked = {name: torch.stack([tensors[name] for tensors in own]) for name in own[0]}
        self.plans, self.states = plans, states
        self.make_update = UpdateMaker(settings, num_experts)
        self.balance = Balance(settings, load_of(plans[0], stacked, device_of(model)))
        # A fixed head is the same for all; trained ones stay outside the model, which holds only one.
        fixed = load_head(model, downloads[0])
        self.head = (
            {n: nn.Parameter(stacked[n].to(p)) for n, p in fixed.items()} if plans[0].training.train_head else {}
        )
        self.parameters: Mapping[str, nn.Parameter] = {**install_experts(model, plans[0], stacked), **self.head}
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> "FftMoeStack":
        self.read_routing = self._stack.enter_context(adapter.record_routing(self._model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[C, B, classes], each client's by its own head."""
        clients = len(self.plans)
        if not self.head:
            return logits(self._model, batch).unflatten(0, (clients, -1))
        inputs_CBF = head_inputs(self._model, batch).unflatten(0, (clients, -1))
        return torch.baddbmm(self.head[names.HEAD_BIAS][:, None], inputs_CBF, self.head[names.HEAD_WEIGHT].mT)

    def penalty(self, mask: Tensor) -> Tensor:
        """The auxiliary losses [C] of the last forward pass; called once per step."""
        return self.balance.penalty(self.read_routing(), mask)

    def finish(self, position: int, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """The update of one client as it stands, and what it keeps."""
        c = position
        trained = Trained(
            deltas={name: (p.detach()[c] - self.start[name][c]).cpu() for name, p in self.parameters.items()},
            slots={block: sums[c].cpu() for block, sums in self.balance.slots.items()},
            probs={block: sums[c].cpu() for block, sums in self.balance.probs.items()},
        )
        return self.make_update(self.plans[c], self.states[c], trained, num_examples, metrics)
