"""Time a training step with the adapter and with LoRA: `python benchmarks/adapter_step.py [--device cuda]`.

A step is forward, backward and AdamW of all-MiniLM-L6 on 16 sequences of 64 tokens. LoRA has as many parameters as a
token uses of our experts, 2*d*k*h in each block. On query and value this is exactly rank k*h/2, on the feed-forward
network about rank k*h/5. `backbone` is the step without an adapter, with a backward pass through as many blocks as
ours. The adapter's own time is the time of a step minus that of `backbone`.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common import RESULTS, machine, markdown, write_result
from fftmoe.adapter import MoeAdapterConfig, record_routing
from fftmoe.adapter.families import select_blocks
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import BUILTIN_MINILM, attach_adapter, load_backbone, logits
from fftmoe.backbones.lora import lora_config
from timing import Seconds, device_name, interleave, ratio, square_product, use_device

BATCH, LENGTH, LABELS, NUM_BLOCKS = 16, 64, 24, 6
EXPERTS = (8, 16, 32, 64)
SIZES = ((16, 2), (64, 2))  # h, k
PARTS = 3  # of the rounds, for the spread
PEAK = "peak"
WITHOUT_ADAPTER = ("head only", "backbone")
FUSED, PLAIN = partial(torch.optim.AdamW, fused=True), torch.optim.AdamW
WITH_PLAIN = f"auto M={EXPERTS[-1]}, plain AdamW"


@dataclass(frozen=True)
class Setting:
    """The settings of one table."""

    blocks: str
    expert_dim: int
    top_k: int
    dtype: str
    device: torch.device

    @property
    def indices(self) -> list[int]:
        """Return the indices of the adapted blocks."""
        return sorted(select_blocks(self.blocks, NUM_BLOCKS))


class Step:
    """One training step of one model."""

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        batch: dict[str, Tensor],
        start: nn.Module | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = FUSED,
    ):
        """`start`: a module from whose second input on gradients are wanted, though nothing is trained there."""
        self.model, self.batch, self.setting = model.to(setting.device), batch, setting
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters, lr=1e-3)
        self.beyond: list[Tensor] = []
        if start is not None:
            start.register_forward_pre_hook(self._require_gradient)

    def _require_gradient(self, _: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, residual = inputs
        self.beyond = [residual.detach().requires_grad_()]
        return hidden, self.beyond[0]

    def __call__(self) -> None:
        """Run forward, backward and AdamW."""
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self) -> None:
        """Run forward and backward."""
        device, dtype = self.setting.device.type, getattr(torch, self.setting.dtype)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = logits(self.model, self.batch)
        loss = F.cross_entropy(output.float(), self.batch["labels"])
        loss.backward(inputs=[*self.parameters, *self.beyond])

    def flops(self) -> int:
        """Count the FLOPs of forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def make_batch(device: torch.device) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 29000, (BATCH, LENGTH), generator=g)
    labels = torch.randint(0, LABELS, (BATCH,), generator=g)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def steps(setting: Setting) -> dict[str, Step]:
    """Return a step of every variant, by name."""
    batch = make_batch(setting.device)
    active = setting.top_k * setting.expert_dim

    def bare() -> nn.Module:
        model = load_backbone(BUILTIN_MINILM, num_labels=LABELS)
        model.get_submodule("classifier").requires_grad_()
        return model

    def lora(targets: str, rank: int) -> Step:
        backbone = load_backbone(BUILTIN_MINILM, num_labels=LABELS)
        config = lora_config(rank, 2.0, target_names(backbone, setting.indices, targets))
        return Step(attach_adapter(backbone, config), setting, batch)

    def ours(experts: int, compute: str, optimizer: Callable[..., torch.optim.Optimizer] = FUSED) -> Step:
        config = MoeAdapterConfig(
            num_experts=experts,
            expert_dim=setting.expert_dim,
            top_k=setting.top_k,
            blocks=setting.blocks,
            compute=compute,
        )
        model = attach_adapter(load_backbone(BUILTIN_MINILM, num_labels=LABELS), config)
        return Step(model, setting, batch, optimizer=optimizer)

    through = bare()
    start = through.get_submodule(f"backbone.encoder.layer.{setting.indices[0]}.output")
    return {
        "head only": Step(bare(), setting, batch),
        "backbone": Step(through, setting, batch, start),
        "LoRA": lora("query-value", active // 2),
        "LoRA feed-forward": lora("feed-forward", round(active / 5)),
        **{f"{compute} M={experts}": ours(experts, compute) for experts in EXPERTS for compute in ("auto", "loop")},
        WITH_PLAIN: ours(EXPERTS[-1], "auto", PLAIN),
    }


def busiest(step: Step) -> float:
    """Return the busiest expert's load divided by the mean load, averaged over blocks."""
    with torch.no_grad(), record_routing(step.model) as read:
        logits(step.model, step.batch)
        loads = [
            routing.expert_ids_TK.flatten().bincount(minlength=routing.probs_TM.shape[1]).float()
            for routing in read().values()
        ]
    return statistics.fmean(float(load.max() / load.mean()) for load in loads)


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    variants = steps(setting)
    # The loop multiplies what was routed and no more, and torch can count its products.
    flops = {name: variants[name.replace("auto", "loop").split(",")[0]].flops() for name in variants}
    loads = {str(experts): busiest(variants[f"auto M={experts}"]) for experts in EXPERTS}
    product, product_flops = square_product(setting.device, getattr(torch, setting.dtype))
    # The peak is measured within the same rounds, under the same disturbance.
    timed: dict[str, Callable[[], object]] = {**variants, PEAK: product}
    seconds = interleave(timed, rounds, setting.device)
    peak = product_flops / statistics.median(seconds[PEAK])
    return {
        "blocks": setting.blocks,
        "expert_dim": setting.expert_dim,
        "top_k": setting.top_k,
        "dtype": setting.dtype,
        "peak_gflops_per_second": peak / 1e9,
        "busiest_over_mean": loads,
        "variants": {name: row(name, variants[name], seconds, flops[name], peak) for name in variants},
    }


def row(name: str, step: Step, seconds: Seconds, flops: int, peak: float) -> dict[str, Any]:
    taken = statistics.median(seconds[name])
    return {
        "trained_parameters": sum(p.numel() for p in step.parameters),
        "milliseconds": 1e3 * taken,
        "own_milliseconds": 1e3 * (taken - statistics.median(seconds["backbone"])),
        "over_lora": ratio(seconds[name], seconds["LoRA"], PARTS),
        "over_lora_feed_forward": ratio(seconds[name], seconds["LoRA feed-forward"], PARTS),
        "gflop": flops / 1e9,
        "fraction_of_peak": flops / taken / peak,
    }


def report(result: dict[str, Any]) -> None:
    variants = result["variants"]

    def spread(values: Sequence[float]) -> str:
        return f"{values[0]:.2f} ({values[1]:.2f}..{values[2]:.2f})"

    rows = [
        [
            name,
            f"{v['milliseconds']:.0f}",
            "-" if name in WITHOUT_ADAPTER else f"{v['own_milliseconds']:.0f}",
            spread(v["over_lora"]),
            spread(v["over_lora_feed_forward"]),
            f"{v['gflop']:.1f}",
            f"{v['fraction_of_peak']:.0%}",
            f"{v['trained_parameters'] / 1e6:.2f}",
        ]
        for name, v in variants.items()
    ]
    print(
        f"\nAdapters in {result['blocks']} blocks, h={result['expert_dim']}, k={result['top_k']}, {result['dtype']}, "
        f"peak {result['peak_gflops_per_second']:.0f} GFLOP/s, busiest expert over mean "
        + ", ".join(f"{load:.1f} (M={experts})" for experts, load in result["busiest_over_mean"].items())
        + "\n"
    )
    header = ["variant", "ms", "own ms", "/ LoRA", "/ LoRA feed-forward", "GFLOP", "of peak", "million parameters"]
    print(markdown(header, rows))
    most = max(variants[f"auto M={experts}"]["over_lora"][0] for experts in EXPERTS)
    auto, loop = (variants[f"{compute} M={EXPERTS[-1]}"] for compute in ("auto", "loop"))
    print(
        f"\nOurs takes at most {most:.2f} of LoRA's step. At M={EXPERTS[-1]} the loop takes "
        f"{loop['milliseconds'] / auto['milliseconds']:.2f} times as long a step, "
        f"{loop['own_milliseconds'] / auto['own_milliseconds']:.1f} times as long for the adapter by itself; "
        f"with torch's own AdamW {variants[WITH_PLAIN]['milliseconds'] / auto['milliseconds']:.2f} times.",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", nargs="+", default=["all", "last-2"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="bfloat16 under autocast")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = use_device(arguments.device)
    dtypes = arguments.dtypes or (["float32"] if device.type == "cpu" else ["bfloat16"])
    results = []
    for dtype in dtypes:
        for blocks in arguments.blocks:
            for expert_dim, top_k in SIZES:
                results.append(measure(Setting(blocks, expert_dim, top_k, dtype, device), arguments.rounds))
                report(results[-1])
    found = {"machine": machine(), "device": device_name(device), "rounds": arguments.rounds, "settings": results}
    name = "adapter_step.json" if device.type == "cpu" else f"adapter_step-{device.type}.json"
    write_result(RESULTS / name, found, "settings")


if __name__ == "__main__":
    main()
