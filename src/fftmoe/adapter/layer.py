"""Defines a feed-forward network with the adapter next to it, as a PEFT layer."""

from torch import Tensor, nn

from fftmoe.adapter.config import MoeAdapterConfig
from fftmoe.adapter.families import AdapterSite
from fftmoe.adapter.moe import SparseMoe
from fftmoe.adapter.shared_update import SharedProjection
from fftmoe.adapter.tuner_layer import MoeTunerLayer
from fftmoe.rng import generator


class MoeLayer(nn.Module, MoeTunerLayer):
    """Wraps one feed-forward module; each named adapter is a SparseMoe in `moe_experts`.

    The outputs of all active adapters are added. While adapters are disabled, only the wrapped module is called.

    Args:
        base_layer: the wrapped module.
        site: its block index, model dim and calling convention.
    """

    adapter_layer_names: tuple[str, ...] = ("moe_experts",)

    def __init__(self, base_layer: nn.Module, site: AdapterSite) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.moe_experts = nn.ModuleDict()
        self.merged_adapters = []

    @property
    def block(self) -> int:
        """Return the index of the Transformer block, counted from the input."""
        return self.site.block

    def update_layer(self, adapter_name: str, config: MoeAdapterConfig) -> None:
        """Add the adapter `adapter_name`; its first weights follow from the config's seed and the block index."""
        moe = SparseMoe(
            config.num_experts,
            config.expert_dim,
            self.site.dim,
            config.top_k,
            generator(config.seed, "adapter", self.site.block),
            scale=config.scale,
            shared_dim=config.shared_dim,
            activation=config.activation,
            gates=config.gates,
            compute=config.compute,
        )
        device = next((p.device for p in self.base_layer.parameters()), None)
        # Experts stay float32 next to a bfloat16 backbone, whose 8 bits would lose small updates.
        if device is not None and moe.up.device.type != "meta" and device.type != "meta":
            moe.to(device)
        self.moe_experts[adapter_name] = moe
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def active_moe(self) -> list[SparseMoe]:
        """Return the active adapters of this layer."""
        named = ((name, self.moe_experts[name]) for name in self.active_adapters if name in self.moe_experts)
        return [moe for _, moe in named if isinstance(moe, SparseMoe)]

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Return the wrapped module without any wrapper inside; PEFT calls this and does not look for
        inner wrappers.
        """
        if merge:
            self.merge(safe_merge, adapter_names)
        for name, module in list(self.base_layer.named_modules()):
            if isinstance(module, SharedProjection):
                self.base_layer.set_submodule(name, module.base_layer)
        return self.base_layer

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Call the wrapped module and add the output of the active adapters."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.site.call == "input":
            y = self.base_layer(x, *args, **kwargs)
            for moe in self._present():
                y = y + moe(x)
            return y
        return self._forward_residual(x, *args, **kwargs)

    def _forward_residual(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        # The wrapped module adds its second argument before its norm, so the adapter's output is added to it.
        residual = input_tensor
        for moe in self._present():
            residual = residual + moe(input_tensor)
        return self.base_layer(hidden_states, residual)

    def _present(self) -> list[SparseMoe]:
        return [moe for moe in self.active_moe() if moe.num_experts > 0]
