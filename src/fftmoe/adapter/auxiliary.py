"""Makes the routers' auxiliary losses a part of the loss that a model returns, so that any training loop includes them.

A `Trainer` uses the model's loss and knows no routers. During one call of the model, hooks read what the routers
decided, and the auxiliary losses are added to the loss of that call. Nothing stays on the model afterwards.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from fftmoe.adapter import losses
from fftmoe.adapter.config import MoeAdapterConfig
from fftmoe.adapter.layer import MoeLayer
from fftmoe.adapter.routing import Routing
from fftmoe.errors import InputError

# The `loss_type` of models of transformers 5 that divide the sum of their loss by `num_items_in_batch`; None is that of
# GPT-2 as a language model. Other models take the argument and return the mean over the batch that they see.
DIVIDING = (None, "ForCausalLM", "ForConditionalGeneration", "ForImageClassification")
IGNORED = -100  # the label of a token that is not to be predicted


@contextmanager
def auxiliary_losses(model: nn.Module, configs: Mapping[str, MoeAdapterConfig]) -> Iterator[None]:
    """Add, within the context, the auxiliary losses of these adapters to the model's training loss.

    For one adapter they are `balance_strength * L_bal + z_strength * L_z`, averaged over its blocks (docs/math.md),
    with the uniform target. Tokens that an `attention_mask` [B, S] leaves out do not count; without such a mask all
    tokens count. Nothing is added for frozen routers, in evaluation mode and in calls without gradients.

    Args:
        model: the model that is called.
        configs: the configuration of each active adapter, by its name.

    Raises:
        InputError: when the model is called: it returned no loss, or its blocks ran without a graph.
    """
    adapters = {name: c for name, c in configs.items() if model.training and (c.balance_strength or c.z_strength)}
    recorded: dict[str, dict[int, Routing]] = {name: {} for name in adapters}

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled() or not any(recorded.values()):
            return output
        inputs = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
        mask, share = inputs.get("attention_mask"), _share(module, inputs)
        penalties = [share * _penalty(adapters[name], routings, mask) for name, routings in recorded.items()]
        return _with_loss(output, penalties)

    with ExitStack() as hooks:
        if adapters:
            hooks.enter_context(model.register_forward_hook(add, with_kwargs=True))
        for layer in model.modules() if adapters else ():
            for name in adapters:
                if isinstance(layer, MoeLayer) and name in layer.moe_experts:
                    router = layer.moe_experts[name].get_submodule("router")
                    if router.weight.requires_grad:
                        hooks.enter_context(router.register_forward_hook(_keep(recorded[name], layer.block)))
        yield


def _keep(into: dict[int, Routing], block: int) -> Callable[[nn.Module, object, Routing], None]:
    """Return a hook that stores the routing of this block."""

    def hook(_module: nn.Module, _inputs: object, routing: Routing) -> None:
        into[block] = routing

    return hook


def _penalty(config: MoeAdapterConfig, routings: Mapping[int, Routing], mask: Tensor | None) -> Tensor:
    """Return the auxiliary losses of one adapter, a scalar."""
    total = torch.zeros(())
    for routing in routings.values():
        if not routing.probs_TM.requires_grad:
            raise InputError(
                "the routers get no gradient of their losses under reentrant activation (gradient) checkpointing, "
                "whose first pass keeps no graph; give it {'use_reentrant': False}, or set balance_strength and "
                "z_strength to 0"
            )
        per_token = isinstance(mask, Tensor) and mask.dim() == 2 and mask.numel() == len(routing.probs_TM)
        mask_T = mask.flatten() if per_token and mask is not None else None
        resident_M = routing.logits_TM[0].isfinite()
        target_M = resident_M / resident_M.sum()
        load_M, probs_M = losses.expert_load(routing, mask_T), losses.mean_probs(routing, mask_T)
        balance = losses.balance_loss(load_M[resident_M], probs_M[resident_M], target_M[resident_M])
        total = total.to(balance.device) + config.balance_strength * balance
        total = total + config.z_strength * losses.router_z_loss(routing, mask_T)
    return total / max(len(routings), 1)


def _share(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | float:
    """Return the factor by which the model scaled its own loss, because one optimizer step adds up several batches.

    `Trainer` then passes `num_items_in_batch`, the number of labels in all these batches, and the model divides the sum
    of its losses by it. The auxiliary losses are means, so they are scaled by the batch's share of all labels.
    """
    kind, items = getattr(model, "loss_type", None), inputs.get("num_items_in_batch")
    labels = inputs.get("shift_labels")
    if labels is None and inputs.get("labels") is not None:
        # Counted as `Trainer` counts them: the first token of a text is not predicted.
        labels = inputs["labels"][..., 1:] if LOSS_MAPPING.get(kind or "") is ForCausalLMLoss else inputs["labels"]
    if items is None or labels is None or kind not in DIVIDING:
        return 1.0
    return labels.ne(IGNORED).sum() / items


def _with_loss(output: Any, penalties: list[Tensor]) -> Any:
    """Return the output with the penalties added to its loss, a scalar, which is the first part of a tuple."""
    loss = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.dim() > 0:
        raise InputError(
            "the model returned no loss to add the routers' losses to: pass it `labels` (Trainer does not with "
            "label_smoothing_factor or compute_loss_func), or set balance_strength and z_strength to 0 and add losses "
            "from record_routing yourself"
        )
    total = loss + sum(penalty.to(loss.device) for penalty in penalties)
    if isinstance(output, tuple):
        return (total, *output[1:])
    output.loss = total
    return output
