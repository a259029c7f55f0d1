"""A fitted LoRA trained to give what the mixture of experts gives, in every block and at the end."""

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


class Given(NamedTuple):
    """Logits [T, C] of texts, images or tokens, and what each feed-forward network gives, [T, D]."""

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
    """Adam on the factors' numbers, `steps` batches in a fixed random order.

    The loss is KL(teacher | student) of the class probabilities (where classes do not exclude one another, the squared
    difference of the logits), plus the mean over blocks of the squared difference of their outputs, both relative to
    the teacher's: each block hears of its own error, and all of what it comes to.

    Args:
        factors: A and B by block, the only parameters of `student` that change.
        exclusive: one class alone is right.
    """
    parameters = [factor for pair in factors.values() for factor in pair]
    student.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    adam, source, sites = torch.optim.Adam(parameters, LEARNING_RATE), generator(0, "distil"), _sites(teacher)
    passes = (torch.randperm(len(batches), generator=source).tolist() for _ in itertools.count())
    for step, index in enumerate(itertools.islice(itertools.chain.from_iterable(passes), steps)):
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        batch = batches[index]
        with torch.no_grad():
            wanted = _run(teacher, batch, sites)
        adam.zero_grad(set_to_none=True)
        _loss(_run(student, batch, sites), wanted, exclusive).backward()
        adam.step()
    student.requires_grad_(False)


def _sites(teacher: Any) -> list[str]:
    """The feed-forward networks beside which the teacher's experts sit, by their names in both models."""
    names = (name for name, module in teacher.named_modules() if isinstance(module, adapter.SparseMoe))
    return [name.partition(".moe_experts.")[0] for name in names]


def _run(model: Any, batch: Batch, sites: Sequence[str]) -> Given:
    """What a model gives for a batch."""
    states: dict[str, Tensor] = {}

    def keep(site: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: states.update({site: real_tokens(output, batch)})

    with ExitStack() as stack:
        for site in sites:
            stack.callback(model.get_submodule(site).register_forward_hook(keep(site)).remove)
        found = logits(model, batch)
    return Given(found if found.dim() == 2 else real_tokens(found, batch), [states[site] for site in sites])


def _loss(found: Given, wanted: Given, exclusive: bool) -> Tensor:
    if exclusive:
        one, other = found.logits.log_softmax(-1), wanted.logits.log_softmax(-1)
        last = F.kl_div(one, other, reduction="batchmean", log_target=True)
    else:
        last = _relative(found.logits, wanted.logits)
    return last + torch.stack([_relative(*pair) for pair in zip(found.states, wanted.states, strict=True)]).mean()


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(found, wanted) / wanted.square().mean()
