"""Makes the adapter a PEFT tuner, which finds the feed-forward networks and wraps them."""

import copy
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from fftmoe.adapter.auxiliary import auxiliary_losses
from fftmoe.adapter.bound import check_base, check_tensors
from fftmoe.adapter.config import MoeAdapterConfig
from fftmoe.adapter.families import AdapterSite, find_sites
from fftmoe.adapter.layer import MoeLayer
from fftmoe.adapter.low_rank import Linear
from fftmoe.adapter.moe import SparseMoe
from fftmoe.adapter.saved_head import saved_head, with_saved_head
from fftmoe.adapter.shared_update import SharedProjection, find_projections
from fftmoe.adapter.tuner_layer import MoeTunerLayer
from fftmoe.errors import InputError
from fftmoe.rng import generator

PER_ROW = ("adapter_names", "alora_offsets")  # arguments of a call that PEFT keeps for itself, and other tuners follow


class MoeModel(BaseTuner):
    """Is what `get_peft_model(model, MoeAdapterConfig(...))` puts around the model."""

    prefix: str = "moe_"
    tuner_layer_cls = MoeTunerLayer

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **options: Any) -> None:
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        folder = getattr(config, "bound_folder", None)  # where the adapter was saved
        super().__init__(
            with_saved_head(model, saved_head(folder)) if folder is not None else model,
            peft_config,
            adapter_name,
            **options,
        )

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        assert isinstance(peft_config, MoeAdapterConfig)
        self._sites: dict[str, AdapterSite] = {
            site.name: site
            for site in find_sites(
                self.model,
                target_modules=peft_config.target_modules,
                exclude_modules=peft_config.exclude_modules,
                blocks=peft_config.blocks,
            )
        }
        blocks = {site.block for site in self._sites.values()} if peft_config.shared_rank else set()
        projections = find_projections(self.model, blocks, peft_config.shared_targets)
        self._projections = {name: found for name, found in projections.items() if name not in self._sites}
        # PEFT wraps a site first and then no longer finds the layers in it, so `_create_and_replace` wraps those.
        apart = [name for name in self._projections if not any(name.startswith(f"{site}.") for site in self._sites)]
        # A copy, so that the saved configuration stays what the user asked for, without the names of this model.
        resolved = copy.copy(peft_config)
        resolved.target_modules = "|".join(re.escape(name) for name in (*self._sites, *apart))
        resolved.exclude_modules = None
        return resolved

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, MoeAdapterConfig)
        if current_key in self._projections:
            self._share(peft_config, adapter_name, current_key)
            return
        for name in self._projections:
            if name.startswith(f"{current_key}."):
                self._share(peft_config, adapter_name, name)
        if isinstance(target, MoeLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = MoeLayer(target, self._sites[current_key])
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _share(self, peft_config: MoeAdapterConfig, adapter_name: str, key: str) -> None:
        """Give the linear layer of this name its shared update."""
        block, name = self._projections[key]
        source, target = generator(peft_config.seed, "shared", block, name), self.model.get_submodule(key)
        if isinstance(target, SharedProjection):
            target.update_layer(adapter_name, peft_config.shared_rank, source, peft_config.inference_mode)
            return
        assert isinstance(target, Linear)
        layer = SharedProjection(target, block, name)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config.shared_rank, source, peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self.model.set_submodule(key, layer)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version copies `weight` and `bias`; a feed-forward network has neither.
        setattr(parent, child_name, new_module)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # PEFT only warns about tensors that are missing, and the model then answers as if it had no adapter there.
        own, given = self.state_dict(), {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
        strange = {key: tensor for key, tensor in given.items() if key not in own and _owner_of(key) is not None}
        loaded = [name for name in self.peft_config if any(_owner_of(key) == name for key in given)]
        for name in loaded:
            found, expected = (
                {key: tensor for key, tensor in tensors.items() if _owner_of(key) == name} for tensors in (given, own)
            )
            check_tensors({**found, **strange}, expected, f"the adapter {name!r}")
            if (base := getattr(self.peft_config[name], "bound_base", None)) is not None:
                check_base(base, self.model, getattr(self.peft_config[name], "bound_folder", name))
        if not loaded:
            check_tensors(strange, {}, "the adapter")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give the context in which PEFT calls the model, in every way that a PeftModel can be called.

        Raises:
            InputError: the call has an argument of PEFT's that the adapter cannot follow.
        """
        for name in PER_ROW:
            if kwargs.get(name) is not None:
                raise InputError(
                    f"{name} asks for another adapter in each row of a batch, which adapters of experts cannot do; "
                    "call set_adapter and pass the rows of one adapter at a time"
                )
        configs = {name: self.peft_config[name] for name in self.active_adapters}
        with auxiliary_losses(self.model, {n: c for n, c in configs.items() if isinstance(c, MoeAdapterConfig)}):
            yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT's rule takes the last two parts of a name; the weight of a router is one module deeper.
        shorter = key.replace(f".moe_experts.{adapter_name}.", ".moe_experts.")
        return shorter if shorter != key else super()._remove_adapter_name_from_key(key, adapter_name)


def _owner_of(key: str) -> str | None:
    """Return the name of the adapter that a tensor belongs to, or is saved with; None for one of the backbone."""
    for part, following in itertools.pairwise(key.split(".")):
        if part.startswith(MoeModel.prefix) or part == "modules_to_save":
            return following
    return None


def blocks(model: nn.Module) -> dict[int, SparseMoe]:
    """Return the active adapter of each adapted block, by block index in depth order.

    Args:
        model: a PeftModel, or any module that holds adapted layers. If several adapters are active, the first of them
            is given.
    """
    layers = [module for module in model.modules() if isinstance(module, MoeLayer) and module.active_moe()]
    return {layer.block: layer.active_moe()[0] for layer in sorted(layers, key=lambda layer: layer.block)}
