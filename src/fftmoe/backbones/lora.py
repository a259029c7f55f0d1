"""LoRA as peft implements it: which modules have it, factors of any rank, products merged into frozen weights.

A module's path is its name in the backbone, e.g. `encoder.layer.1.attention.self.query`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fftmoe.errors import InputError, did_you_mean

# Which linear modules of a block are meant, by their names.
TARGETS = {
    "query-value": r"(query|value|q_proj|v_proj|q_lin|v_lin|c_attn)$",
    "attention": r"att(n|ention)",
    "feed-forward": r"^(?!.*att(n|ention))",
    "all-linear": "",
}
_BLOCK = r"(?:^|\.)(\d+)\."

Factors = Mapping[str, tuple[Tensor, Tensor]]  # path -> A [r, d_in], B [d_out, r]


def lora_config(
    rank: int, scale: float, target_modules: Sequence[str] | None = None, blocks: Iterable[int] | None = None
) -> LoraConfig:
    """The configuration to attach LoRA with; `load_factors` changes the rank later and keeps the scale.

    Args:
        rank: r of the attached factors.
        scale: s in `W x + s B A x`, whatever the rank.
        target_modules: endings of the names of the modules to adapt; peft's choice for the model's family when None.
        blocks: indices of the blocks to adapt; all when None.

    Raises:
        InputError: `target_modules` is one string, which peft would read as a pattern that ignores `blocks`.
    """
    if isinstance(target_modules, str):
        raise InputError(f"target_modules={target_modules!r} is a string; list the endings, e.g. [{target_modules!r}]")
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # peft divides by r and takes a float
        target_modules=None if target_modules is None else list(target_modules),
        layers_to_transform=None if blocks is None else sorted(blocks),
        lora_dropout=0.0,
    )


def target_names(model: nn.Module, blocks: Iterable[int], targets: str = "query-value") -> list[str]:
    """The linear modules of these blocks, by their whole names.

    Args:
        targets: "query-value" (as in the paper of LoRA), "attention", "feed-forward" or "all-linear".

    Raises:
        InputError: unknown `targets`, or no such module.
    """
    if targets not in TARGETS:
        raise InputError(f"unknown lora.targets {targets!r}{did_you_mean(targets, TARGETS)}")
    wanted = set(blocks)
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    inside = (name for name in linears if re.search(_BLOCK, name) and block_of_module(name) in wanted)
    names = [name for name in inside if re.search(TARGETS[targets], name)]
    if not names:
        raise InputError(f"blocks {sorted(wanted)} of this model hold no linear {targets} modules for LoRA to adapt")
    return names


def lora_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The modules of the active LoRA adapter in depth order: path -> (d_in, d_out)."""
    return {path: (layer.in_features, layer.out_features) for path, (layer, _) in _layers(model).items()}


def block_of_module(path: str) -> int:
    """The index of the block that a module lies in: the first number in its path, as for peft.

    Raises:
        InputError: it lies in none.
    """
    match = re.search(_BLOCK, path)
    if match is None:
        raise InputError(f"module {path!r} is in no numbered block; name other target modules, or the blocks to adapt")
    return int(match[1])


def load_factors(model: Any, factors: Factors) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Replaces the adapter's factors by copies of these, of any rank; a module without any gets rank 0.

    The scale stays. The model's configuration follows, so that a saved adapter opens with peft (which knows no
    rank 0).

    Returns:
        path -> the new parameters A and B, for the paths of `factors`.
    """
    loaded, ranks = {}, {}
    for path, (layer, adapter_name) in _layers(model).items():
        linear_a, linear_b = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        empty = (linear_a.weight[:0], linear_b.weight[:, :0])
        a, b = factors.get(path, empty)
        rank = a.shape[0]
        assert a.shape == (rank, layer.in_features), path
        assert b.shape == (layer.out_features, rank), path
        linear_a.weight, linear_b.weight = _copy(a, linear_a.weight), _copy(b, linear_b.weight)
        linear_a.out_features = linear_b.in_features = layer.r[adapter_name] = ranks[path] = rank
        if path in factors:
            loaded[path] = (linear_a.weight, linear_b.weight)
    _follow(model, ranks)
    return loaded


@contextmanager
def merged(model: nn.Module, products: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context each named module's frozen weight is `W + scale * product`, product [d_out, d_in].

    Afterwards the weights are the very tensors they were: subtracting again would leave rounding errors, which
    would grow from client to client.
    """
    pristine: list[tuple[nn.Parameter, Tensor]] = []
    layers = _layers(model)
    try:
        for path, product in products.items():
            layer, adapter_name = layers[path]
            weight: nn.Parameter = layer.get_base_layer().weight
            # A Conv1D of GPT-2 stores its weight as [d_in, d_out].
            change = product.T if getattr(layer, "fan_in_fan_out", False) else product
            pristine.append((weight, weight.data))
            total = weight.data.float() + layer.scaling[adapter_name] * change.to(weight.device)
            weight.data = total.to(weight.dtype)
        yield
    finally:
        for weight, data in pristine:
            weight.data = data


def _layers(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """The LoRA layers by path, each with the name of its active adapter."""
    found: dict[str, tuple[Any, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            active = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
            if active:
                found[name.removeprefix("base_model.model.")] = (module, active[0])
    return found


def _copy(new: Tensor, old: nn.Parameter) -> nn.Parameter:
    # A copy: training must not reach into the tensors that were loaded.
    return nn.Parameter(new.detach().to(old.device, old.dtype, copy=True).contiguous(), requires_grad=old.requires_grad)


def _follow(model: Any, ranks: Mapping[str, int]) -> None:
    """The configuration of what is loaded now: peft's scale is alpha / r, module by module."""
    layers = _layers(model)
    largest = max(ranks.values(), default=0)
    if not layers or largest == 0:
        return
    layer, adapter_name = next(iter(layers.values()))
    scale = layer.scaling[adapter_name]
    config = model.peft_config[adapter_name]
    config.r, config.lora_alpha = largest, scale * largest
    others = {path: rank for path, rank in ranks.items() if rank != largest}
    config.rank_pattern = {re.escape(path): rank for path, rank in others.items()}
    config.alpha_pattern = {re.escape(path): scale * rank for path, rank in others.items()}
