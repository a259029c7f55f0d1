"""Trains a fitted LoRA further, so that its blocks and its logits give what the mixture of experts gives."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import logits
from fftmoe.exports.check import Batch
from fftmoe.exports.fit import real_tokens
from fftmoe.rng import generator

LEARNING_RATE = 1e-3


class Outputs(NamedTuple):
    """Holds logits [T, C] of texts, images or tokens, and the output [T, D] of each adapted feed-forward network."""

    logits: Tensor
    states: list[Tensor]


def distil(
    student: Any,
    factors: Mapping[int, tuple[Tensor, Tensor]],
    teacher: Any,
    batches: Sequence[Batch],
    steps: int,
    exclusive: bool,
) -> None:
    """Train the factors with Adam on `steps` batches in a fixed random order.

    The loss is the KL divergence KL(teacher | student) of the class probabilities plus the mean over blocks of the
    squared difference of the block outputs. Where classes do not exclude one another, the squared difference of the
    logits takes the place of the divergence. Squared differences are relative to the mean square of the teacher. Each
    block is therefore trained on its own error and on the error of the whole model.

    Args:
        factors: the parameters A and B by block; no other parameter of `student` changes.
        exclusive: whether exactly one class is right.
    """
    parameters = [factor for pair in factors.values() for factor in pair]
    student.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    adam, source, sites = torch.optim.Adam(parameters, LEARNING_RATE), generator(0, "distil"), expert_sites(teacher)
    passes = (torch.randperm(len(batches), generator=source).tolist() for _ in itertools.count())
    for step, index in enumerate(itertools.islice(itertools.chain.from_iterable(passes), steps)):
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        batch = batches[index]
        with torch.no_grad():
            target = outputs_at(teacher, batch, sites)
        adam.zero_grad(set_to_none=True)
        distillation_loss(outputs_at(student, batch, sites), target, exclusive).backward()
        adam.step()
    student.requires_grad_(False)


@torch.no_grad()
def mean_distillation_loss(student: Any, teacher: Any, batches: Sequence[Batch], exclusive: bool) -> float:
    """Return the loss of `distil`, mean over batches."""
    sites = expert_sites(teacher)
    losses = [
        distillation_loss(outputs_at(student, batch, sites), outputs_at(teacher, batch, sites), exclusive)
        for batch in batches
    ]
    return float(torch.stack(losses).mean())


def expert_sites(teacher: Any) -> list[str]:
    """Return the feed-forward networks with experts, by the names that they have in both models."""
    names = (name for name, module in teacher.named_modules() if isinstance(module, adapter.SparseMoe))
    return [name.partition(".moe_experts.")[0] for name in names]


def outputs_at(model: Any, batch: Batch, sites: Sequence[str]) -> Outputs:
    """Return the logits and the block outputs of a model for a batch."""
    states: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: states.update({site: real_tokens(output, batch)})

    with ExitStack() as stack:
        for site in sites:
            stack.callback(model.get_submodule(site).register_forward_hook(keep(site)).remove)
        found = logits(model, batch)
    return Outputs(found if found.dim() == 2 else real_tokens(found, batch), [states[site] for site in sites])


def distillation_loss(found: Outputs, target: Outputs, exclusive: bool) -> Tensor:
    """Return how far the outputs are from the target: of the logits, and the mean over the blocks.

    Logits are compared by the KL divergence of exclusive classes, and by relative squared error otherwise.
    """
    if exclusive:
        student, teacher = found.logits.log_softmax(-1), target.logits.log_softmax(-1)
        last = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    else:
        last = _relative_square(found.logits, target.logits)
    return (
        last + torch.stack([_relative_square(*pair) for pair in zip(found.states, target.states, strict=True)]).mean()
    )


def _relative_square(found: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(found, target) / target.square().mean()
