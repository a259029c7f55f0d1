"""FLAME gives every client all experts, and each client activates as many as it can afford (arXiv 2506.16600).

The server averages expert j with the weights w_nj = |D_n| f_nj^t, where f_nj is the number of activations of j on
client n per local step, and t = 1. FLAME adapts the experts of a pretrained mixture of experts by LoRA. Here its rules
apply to the experts of our adapter, whose router is trained and averaged with the same weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import CostMatch, Defaults, MethodParts
from fftmoe.methods.fft_moe import FftMoe, FftMoeSession
from fftmoe.methods.merge.aggregate import Merge, WeightedSum
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors, names

BY_ACTIVATIONS = partial(WeightedSum, activation_power=1.0)


def _no_losses() -> LocalSettings:
    return LocalSettings(balance="none", z_strength=0.0)


@dataclass(frozen=True)
class Flame(FftMoe):
    """`Flame` lets client n use k_n of all M experts, scaled by a trained scalar s_n per block.

    The scalar stays on the client. Every client holds the whole pool whatever its `Budget.experts`. As in the paper,
    neither memory nor traffic decrease with k_n.

    Attributes:
        local: routing and losses on the client; FLAME has no auxiliary losses.
        merge: how the updates of a round become one delta.
    """

    local: LocalSettings = field(default_factory=_no_losses)
    merge: Merge = BY_ACTIVATIONS

    capabilities: ClassVar[Capabilities] = METHODS["flame"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make the method for a population, with the losses and the weights that FLAME prescribes."""
        return cls(parts.budgets, parts.shape, parts.num_experts, optimizer=parts.optimizer, seed=parts.seed)

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers with the whole pool as resident experts."""
        pool = cost.num_experts
        return tuple(replace(tier, experts=pool, top_k=min(tier.top_k, pool)) for tier in tiers)

    def parameters(self, budget: Budget) -> int:
        """Return the number of parameters of all experts and of one scalar in every block of the budget."""
        return len(budget.blocks) * (self.shape.block_parameters(self.num_experts) + 1)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Assign every expert of its blocks to each client."""
        pool = tuple(range(self.num_experts))
        return {client_id: dict.fromkeys(self.budgets[client_id].blocks, pool) for client_id in cohort}

    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> "FlameSession":
        """Make the training session of a client."""
        return FlameSession(model, plan, tensors, client_state, self.local, self.num_experts)

    stack = Defaults.stack  # each client's own scalars act outside the experts

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """Return the largest number of activations in one step: k_n for each token of a full batch."""
        return float(plan.budget.top_k * plan.training.batch_size * max_tokens)

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return the largest update, without preferences, which FLAME does not send."""
        return replace(super().widest_update(plan, download), preferences={})

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Load the global model with the experts' second layers multiplied by the client's scalars.

        This gives the client's model, because the adapter's output is linear in these layers.
        """
        known = {**tensors, **client_state}
        scaled = {
            name: known[names.expert_tensor(block, "scale")] * tensors[name]
            for block in plan.experts
            for name in (names.expert_tensors(block)[-1], names.shared_tensors(block)[-1])
            if name in tensors and names.expert_tensor(block, "scale") in known
        }
        super().personalize(model, {**tensors, **scaled}, plan, client_state)


def _times(scale: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """Make a forward hook that multiplies a module's output by `scale`."""
    return lambda _module, _inputs, y: scale.to(y) * y


class FlameSession(FftMoeSession):
    """`FlameSession` is FFT-MoE's session with a trained scalar on each block's output."""

    def __init__(
        self,
        model: Any,
        plan: ClientPlan,
        tensors: Tensors,
        client_state: Tensors,
        settings: LocalSettings,
        num_experts: int,
    ) -> None:
        super().__init__(model, plan, tensors, client_state, settings, num_experts)
        self.scales: dict[int, nn.Parameter] = {
            block: nn.Parameter(
                client_state.get(names.expert_tensor(block, "scale"), torch.ones(1)).clone().to(device_of(model))
            )
            for block in plan.experts
        }
        self.parameters: Mapping[str, nn.Parameter] = {
            **self.parameters,
            **{names.expert_tensor(b, "scale"): scale for b, scale in self.scales.items()},
        }
        self.start |= {
            names.expert_tensor(block, "scale"): scale.detach().clone() for block, scale in self.scales.items()
        }
        self.steps = 0

    def __enter__(self) -> "FlameSession":
        super().__enter__()
        blocks = adapter.blocks(self._model)
        for block, scale in self.scales.items():
            self._stack.callback(blocks[block].register_forward_hook(_times(scale)).remove)
        return self

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return FFT-MoE's penalty and count the step; the penalty also counts the routed slots."""
        self.steps += 1
        return super().penalty(mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return an update with f_nj, the activations per step, as shares.

        A client with twice the k_n therefore has twice the weight.
        """
        update, state = super().finish(num_examples, metrics)
        per_step = self.plan.budget.top_k / max(self.steps, 1)
        shares = {
            block: tuple((self.balance.slots[block][list(ids)] * per_step).tolist())
            for block, ids in update.experts.items()
        }
        state |= {
            names.expert_tensor(block, "scale"): scale.detach().cpu().clone() for block, scale in self.scales.items()
        }
        # All clients hold the same experts, so the server does not need their preferences.
        return replace(update, shares=shares, preferences={}), state
