"""Runs a frozen model from the middle on: what its first blocks compute never changes, so it is computed only once.

The hidden states that enter the first adapted block depend on nothing but the example. `prefix_states` computes them. A
batch that has them as "prefix_states" is run from that block on.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fftmoe.adapter.bound import HEAD_MODULES
from fftmoe.adapter.families import FAMILIES
from fftmoe.backbones.placement import computing
from fftmoe.errors import InputError
from fftmoe.shown import count_of

# The parts of a batch that are not inputs of the model.
_NOT_INPUTS = ("labels", "prefix_states", "reference")


def prefix_states(model: nn.Module, block: int, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states [B, S, d] that enter block `block` (counted from 0), without gradients.

    Nothing after them is computed.

    Raises:
        InputError: as for `check_prefix`.
    """
    check_prefix(model, block)

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    handle = _block_list(model).modules[block].register_forward_pre_hook(stop)
    try:
        with torch.no_grad(), computing(model):
            model(**model_inputs(batch))
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise AssertionError("a forward pass calls every block")


def enable_resume(model: nn.Module, block: int) -> None:
    """Prepare a model so that a batch with "prefix_states" is run from block `block` on (see `resumed`).

    Other batches go through the whole model as before. None of this is saved with the model.

    Raises:
        InputError: as for `check_prefix`.
    """
    check_prefix(model, block)
    blocks = _block_list(model)
    held = _Held()
    stand_ins = [_StandIn(held, replaced, blocks.in_tuples) for replaced in blocks.modules[:block]]
    rest = nn.ModuleList([*stand_ins, *blocks.modules[block:]])
    # Inside a separate object, so that these modules do not become children of the model.
    cast(Any, model).resume = _Resume(blocks, rest, held, _touched(blocks.modules[:block]))


def num_states(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Return S, the number of hidden states of each example in a batch; adapters do not change it."""

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    handle = _block_list(model).modules[0].register_forward_pre_hook(stop)
    try:
        with torch.no_grad(), computing(model):
            model(**model_inputs(batch))
    except _Reached as reached:
        return reached.states.shape[1]
    finally:
        handle.remove()
    raise AssertionError("a forward pass reaches the first block")


@contextmanager
def resumed(model: nn.Module, states: Tensor | None) -> Iterator[None]:
    """Start forward passes, within the context, with `states` [B, S, d]; None leaves the model unchanged.

    The embeddings are still computed: they are cheap, and masks and positions follow from their shape.

    Raises:
        InputError: `enable_resume` was not called.
    """
    if states is None:
        yield
        return
    resume = getattr(model, "resume", None)
    if resume is None:
        raise InputError(
            "the batch has prefix_states, but the model was not prepared for them: call enable_resume(model, block)"
        )
    parent, name = resume.blocks.parent, resume.blocks.name
    resume.held.states = states
    setattr(parent, name, resume.rest)
    try:
        yield
    finally:
        setattr(parent, name, resume.blocks.modules)
        resume.held.states = None


def first_adapted_block(model: nn.Module) -> int:
    """Return the first block that has an adapter or is trained; the last block if there is none.

    It is 0 if fftmoe does not know where the model keeps its blocks, because then no block is known to be fixed.
    """
    try:
        modules = _block_list(model).modules
    except InputError:
        return 0
    return next((number for number, block in enumerate(modules) if _is_adapted(block)), len(modules) - 1)


def check_prefix(model: nn.Module, block: int) -> None:
    """Check that the states which enter block `block` are fixed.

    Raises:
        InputError: fftmoe does not know where the model keeps its blocks, there is no such block or no block before it,
            something before it is adapted or trained, or dropout is active.
    """
    modules = _block_list(model).modules
    if not 0 < block < len(modules):
        last = len(modules) - 1
        raise InputError(f"block={block}, but the model has {count_of(last + 1, 'block')}; choose between 1 and {last}")
    if model.training:
        raise InputError(
            "the model is in training mode, in which dropout changes what blocks compute; call model.eval()"
        )
    for number in range(block):
        if _is_adapted(modules[number]):
            raise InputError(f"block {number} is adapted, and block {block} depends on what it computes")
    for name, tensor in prefix_tensors(model, block).items():
        if tensor.requires_grad:
            raise InputError(f"{name} is trained, and block {block} depends on what it computes")


def prefix_tensors(model: nn.Module, block: int) -> dict[str, Tensor]:
    """Return the parameters and buffers that determine the states before block `block`, by name.

    These are all except those of the later blocks and of the head. Small later parts, such as a final norm, are
    included, and so are the scales of quantised weights, which are neither parameters nor buffers.
    """
    after = {id(tensor) for later in _block_list(model).modules[block:] for tensor in _tensors(later).values()}
    before = {
        name: tensor
        for name, tensor in _tensors(model).items()
        if id(tensor) not in after and not set(HEAD_MODULES) & set(name.split("."))
    }
    integers = (name for name, p in model.named_parameters() if name in before and not p.is_floating_point())
    quantized = {name.rpartition(".")[0] for name in integers}
    state = model.state_dict() if quantized else {}
    return {name: tensor for name, tensor in state.items() if _owners(name) & quantized} | before


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a batch with which the model is called."""
    return {name: value for name, value in batch.items() if name not in _NOT_INPUTS}


class _Reached(Exception):
    """Carries the states out of the model, and is no error."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@dataclass
class _Held:
    """Holds the states with which the next forward pass starts."""

    states: Tensor | None = None


class _StandIn(nn.Module):
    """Replaces a block before the first adapted one: it returns the states that were computed before.

    Args:
        held: where they are.
        replaced: the block; models that have several kinds of attention ask a block for its own.
        in_tuple: whether the block returns its states as the first of a tuple.
    """

    def __init__(self, held: _Held, replaced: nn.Module, in_tuple: bool) -> None:
        super().__init__()
        self.held, self.in_tuple = held, in_tuple
        self.attention_type = getattr(replaced, "attention_type", None)

    def forward(self, hidden_BSD: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor, None]:
        states = self.held.states
        assert states is not None
        assert states.shape == hidden_BSD.shape
        states = states.to(hidden_BSD)
        return (states, None) if self.in_tuple else states


@dataclass(frozen=True)
class _BlockList:
    """Says where a model keeps its blocks: the attribute `name` of `parent`; `in_tuples` as in `ModelFamily`."""

    parent: nn.Module
    name: str
    modules: nn.ModuleList
    in_tuples: bool


@dataclass(frozen=True)
class _Resume:
    blocks: _BlockList
    rest: nn.ModuleList  # as many modules, stand-ins at first, because models number their blocks by position
    held: _Held
    untouched: tuple[int, ...]  # what `_touched` counted in the blocks that are not run


def _touched(blocks: nn.ModuleList) -> tuple[int, ...]:
    """Return counts that change when someone hooks into blocks, lets their parameters be trained,
    or overwrites these.
    """
    modules, parameters = list(blocks.modules()), list(blocks.parameters())
    hooks = (len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules)
    return len(modules), sum(hooks), sum(p.requires_grad for p in parameters), *(p._version for p in parameters)


def check_skipped(model: nn.Module) -> None:
    """Check that nobody has touched the blocks that a prepared model does not run (`enable_resume`).

    Raises:
        InputError: they have hooks, trained parameters, other modules or other values than when it was prepared.
    """
    resume = getattr(model, "resume", None)
    if resume is None:
        return
    skipped = sum(isinstance(module, _StandIn) for module in resume.rest)
    if _touched(resume.blocks.modules[:skipped]) != resume.untouched:
        raise InputError(
            f"the method's session hooks into, trains or changes blocks 0 to {skipped - 1}, and these do not run, "
            "because their states are cached; set engine.prefix_cache=off"
        )


def block_modules(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a model, from the first to the last.

    Raises:
        InputError: fftmoe does not know where the model keeps them.
    """
    return _block_list(model).modules


def _block_list(model: nn.Module) -> _BlockList:
    model_type = str(getattr(getattr(model, "config", None), "model_type", None))
    if model_type not in FAMILIES:
        raise InputError(
            f"fftmoe does not know where a {model_type} model keeps its blocks, only those of the families "
            f"{', '.join(sorted(FAMILIES))}"
        )
    # The family's pattern names a module within block (\d+); the part before that is the list of blocks.
    pattern = FAMILIES[model_type].pattern.partition(r"\.(\d+)")[0]
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and re.fullmatch(pattern, path):
            parent, _, name = path.rpartition(".")
            return _BlockList(model.get_submodule(parent), name, module, FAMILIES[model_type].in_tuples)
    raise InputError(f"this {model_type} model has no list of blocks named {pattern!r}")


def _is_adapted(block: nn.Module) -> bool:
    # An adapter counts even if it is frozen, for example after loading, because its weights can be replaced.
    return any(isinstance(module, BaseTunerLayer) for module in block.modules()) or any(
        parameter.requires_grad for parameter in block.parameters()
    )


def _owners(name: str) -> set[str]:
    """Return the modules to which a tensor of this name may belong: `a.weight.absmax` to `a.weight` or `a`."""
    return {name.rsplit(".", 1)[0], name.rsplit(".", 2)[0], name.rsplit(".", 3)[0]}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
