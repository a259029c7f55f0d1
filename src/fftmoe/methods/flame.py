"""FLAME: every client holds all experts and activates as many as it can afford (arXiv 2506.16600).

FLAME adapts the experts of a pretrained mixture by LoRA. Here its rules act on the experts of our adapter, whose
router has to be trained and is averaged as they are.
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
    """Client n uses k_n of all M experts, times a learnable scalar s_n per block that never leaves it.

    Expert j is averaged with weights `f_nj ** t * |D_n|`, f_nj its activations on client n per local step, with
    t = 1. `Budget.experts` has no say: neither memory nor traffic shrink with k_n, as in the paper.
    """

    local: LocalSettings = field(default_factory=_no_losses)
    merge: Merge = BY_ACTIVATIONS

    capabilities: ClassVar[Capabilities] = METHODS["flame"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """FLAME over a population. The balance losses and the weights of the mean are its own."""
        return cls(
            budgets=parts.budgets,
            shape=parts.shape,
            num_experts=parts.num_experts,
            optimizer=parts.optimizer,
            seed=parts.seed,
        )

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Every tier holds the whole pool."""
        pool = cost.num_experts
        return tuple(replace(tier, experts=pool, top_k=min(tier.top_k, pool)) for tier in tiers)

    def parameters(self, budget: Budget) -> int:
        """All experts and one scalar in every block of the budget."""
        return len(budget.blocks) * (self.shape.block_parameters(self.num_experts) + 1)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Everyone holds every expert of its blocks."""
        pool = tuple(range(self.num_experts))
        return {client_id: dict.fromkeys(self.budgets[client_id].blocks, pool) for client_id in cohort}

    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> "FlameSession":
        """A client's local training."""
        return FlameSession(model, plan, tensors, client_state, self.local, self.num_experts)

    stack = Defaults.stack  # each client's own scalars act outside the experts

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """Activations per step, as shares are here: of each token of a full batch k_n."""
        return float(plan.budget.top_k * plan.training.batch_size * max_tokens)

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Without preferences."""
        return replace(super().widest_update(plan, download), preferences={})

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """The global model times the client's scalars: the output is linear in the experts' second layers."""
        scaled = {
            name: client_state[names.expert_tensor(block, "scale")] * tensors[name]
            for block in plan.experts
            for name in (names.expert_tensors(block)[-1], names.shared_tensors(block)[-1])
            if name in tensors and names.expert_tensor(block, "scale") in client_state
        }
        super().personalize(model, {**tensors, **scaled}, plan, client_state)


def _times(scale: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that multiplies a module's output."""
    return lambda _module, _inputs, y: scale.to(y) * y


class FlameSession(FftMoeSession):
    """FFT-MoE's session with a trained factor on each block's output."""

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
        """FFT-MoE's, which also counts the routed slots; called once per step."""
        self.steps += 1
        return super().penalty(mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """In the place of shares f_nj = activations per step, so that a client of twice the k_n counts twice."""
        update, state = super().finish(num_examples, metrics)
        per_step = self.plan.budget.top_k / max(self.steps, 1)
        shares = {
            block: tuple((self.balance.slots[block][list(ids)] * per_step).tolist())
            for block, ids in update.experts.items()
        }
        state |= {
            names.expert_tensor(block, "scale"): scale.detach().cpu().clone() for block, scale in self.scales.items()
        }
        # All clients hold the same experts, so no one needs to know which they prefer.
        return replace(update, shares=shares, preferences={}), state
