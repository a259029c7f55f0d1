"""Keeps only what enters each block, and computes the block again in the backward pass: `engine.checkpointing`.

Transformers has the same for models in training mode. Here frozen backbones stay in evaluation mode, in which dropout
is off, and what records routing must not see the second pass.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fftmoe.adapter.routing import Router
from fftmoe.backbones.prefix import block_modules


def enable_checkpointing(model: nn.Module) -> None:
    """Let every block of a model compute its inner states again in the backward pass (Chen et al., arXiv 1604.06174).

    Gradients are the same to the last bit. A step runs each block forward twice, so it takes up to half longer.

    Raises:
        InputError: fftmoe does not know where the model keeps its blocks.
    """
    for block in block_modules(model):
        block.forward = partial(_checkpointed, block, block.forward)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # Nothing in a block is random in evaluation mode.
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _unrecorded(block)),
        **kwargs,
    )


@contextmanager
def _unrecorded(block: nn.Module) -> Iterator[None]:
    """Keep the routers of the block, within the context, from calling the hooks that record routing,
    which have seen the first pass.
    """
    hooks = {module: module._forward_hooks for module in block.modules() if isinstance(module, Router)}
    for module in hooks:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, own in hooks.items():
            module._forward_hooks = own
