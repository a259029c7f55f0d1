"""Uses PEFT's LoRA for the LoRA baselines: attaches it, loads factors of any rank, and merges products.

Which layers are adapted, how many parameters that takes and where the factors start is said in
`fftmoe.adapter.low_rank`, for these baselines and for the adapter's shared updates.
A module's path is its name in the backbone, such as `encoder.layer.1.attention.self.query`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fftmoe.adapter.replace import replaced
from fftmoe.errors import InputError

Factors = Mapping[str, tuple[Tensor, Tensor]]  # path -> A [r, d_in], B [d_out, r]


def lora_config(
    rank: int, scale: float, target_modules: Sequence[str] | None = None, blocks: Iterable[int] | None = None
) -> LoraConfig:
    """Return the configuration with which LoRA is attached; `load_factors` can change the rank later and keeps the
    scale.

    Args:
        rank: r of the attached factors.
        scale: s in `W x + s B A x`, whatever the rank.
        target_modules: endings of the names of the modules to adapt; None for PEFT's choice for the model's family.
        blocks: indices of the blocks to adapt; None for all blocks.

    Raises:
        InputError: `target_modules` is one string, which PEFT would read as a pattern that ignores `blocks`.
    """
    if isinstance(target_modules, str):
        raise InputError(f"target_modules={target_modules!r} is a string; list the endings, e.g. [{target_modules!r}]")
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type]  # PEFT divides by r and accepts a float
        target_modules=None if target_modules is None else list(target_modules),
        layers_to_transform=None if blocks is None else sorted(blocks),
        lora_dropout=0.0,
    )


def lora_modules(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the modules of the active LoRA adapter in depth order: path -> (d_in, d_out)."""
    return {path: (layer.in_features, layer.out_features) for path, (layer, _) in _layers(model).items()}


def load_factors(model: Any, factors: Factors) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Replace the adapter's factors by copies of these, of any rank; a module without factors gets rank 0.

    The scale stays. The model's configuration is adjusted, so that PEFT can open a saved adapter; a configuration of
    PEFT has no rank 0.

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
        linear_a.weight, linear_b.weight = replaced(linear_a.weight, a), replaced(linear_b.weight, b)
        linear_a.out_features = linear_b.in_features = layer.r[adapter_name] = ranks[path] = rank
        if path in factors:
            loaded[path] = (linear_a.weight, linear_b.weight)
    _update_config(model, ranks)
    return loaded


def factors_of(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Return the factors A and B of every LoRA layer, by path; none for a model without LoRA."""
    return {
        path: (layer.lora_A[name].weight, layer.lora_B[name].weight) for path, (layer, name) in _layers(model).items()
    }


@contextmanager
def merged(model: nn.Module, products: Mapping[str, Tensor]) -> Iterator[None]:
    """Set, within the context, the frozen weight of each named module to `W + scale * product`, product [d_out, d_in].

    Afterwards the modules have their original tensors again: subtracting the products would leave rounding errors,
    which would grow from client to client.
    """
    pristine: list[tuple[nn.Parameter, Tensor]] = []
    layers = _layers(model)
    try:
        for path, product in products.items():
            layer, adapter_name = layers[path]
            weight: nn.Parameter = layer.get_base_layer().weight
            # GPT-2's Conv1D stores its weight as [d_in, d_out].
            change = product.T if getattr(layer, "fan_in_fan_out", False) else product
            pristine.append((weight, weight.data))
            total = weight.data.float() + layer.scaling[adapter_name] * change.to(weight.device)
            weight.data = total.to(weight.dtype)
        yield
    finally:
        for weight, data in pristine:
            weight.data = data


def _layers(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """Return the LoRA layers by path, each with the name of its active adapter."""
    found: dict[str, tuple[Any, str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            active = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
            if active:
                found[name.removeprefix("base_model.model.")] = (module, active[0])
    return found


def _update_config(model: Any, ranks: Mapping[str, int]) -> None:
    """Adjust the configuration to the ranks that are loaded: PEFT's scale is alpha / r for each module."""
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
