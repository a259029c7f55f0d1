"""Reads what the routers decided, without keeping state on any module."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from fftmoe.adapter.model import blocks
from fftmoe.adapter.routing import Routing

ReadRouting = Callable[[], dict[int, Routing]]


@contextmanager
def record_routing(model: nn.Module) -> Iterator[ReadRouting]:
    """Let `read()`, within the context, return the Routing of each block's last forward pass and forget it.

    The routings carry gradients, so auxiliary losses can be taken from them:

        with record_routing(model) as read:
            logits = model(**batch).logits
            losses = [router_z_loss(routing, mask) for routing in read().values()]

    Yields:
        `read() -> dict[int, Routing]`, by block index in depth order. Blocks that hold no experts or did not run are
        absent. The tokens are in the order of `x.flatten(0, -2)`, so `mask.flatten()` is the attention mask for them.
    """
    recorded: dict[int, Routing] = {}

    def hook_for(block: int) -> Callable[[nn.Module, object, Routing], None]:
        def hook(_module: nn.Module, _inputs: object, routing: Routing) -> None:
            recorded[block] = routing

        return hook

    def read() -> dict[int, Routing]:
        routings = {block: recorded[block] for block in sorted(recorded)}
        recorded.clear()
        return routings

    handles = [moe.router.register_forward_hook(hook_for(block)) for block, moe in blocks(model).items()]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()
