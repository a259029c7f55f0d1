"""Measure language models and images: `python benchmarks/tasks.py --data ../shared/data --models ../shared/models`.

`--data` holds `flan8/`, `shakespeare/` and `pacs32/`, `--models` holds `stories260k/` and `vit-cifar10/`. Each recipe
runs with four methods; the metric of the unchanged backbone is the one before the first round. Then a training step is
timed on models of two families with random weights, large enough for matrix products to dominate. `--small` takes
minutes.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from common import RESULTS, Results, as_measured, column, machine, markdown, mean_and_spread, write_result
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import attach_adapter, token_losses
from fftmoe.backbones.lora import lora_config
from fftmoe.tasks import NextToken
from timing import device_name, interleave, ratio, use_device

RECIPES = {"flan8": "stories260k", "shakespeare": "stories260k", "pacs32": "vit-cifar10"}
METHODS = ("local-only", "fedit", "hetlora", "fft-moe")
SMALL = ("federation.rounds=4", "data.train_examples=1200", "data.test_examples=300", "evaluation.max_examples=null")
FULL = ("evaluation.max_examples=null",)  # so that the untouched backbone is measured on the whole test set

# Of a step: 8 blocks of width 512, so that both adapters fit in 2 * d * k * h numbers a block.
BATCH, LENGTH, VOCABULARY, BLOCKS, WIDTH = 4, 128, 8192, 8, 512
EXPERTS, EXPERT_DIM, TOP_K = 16, 16, 2
FAMILIES: dict[str, Any] = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each variant")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["runs", "steps"])
    arguments = parser.parse_args()
    path = RESULTS / ("tasks-small.json" if arguments.small else "tasks.json")
    if arguments.only != "steps":
        print(runs(path, arguments))
    if arguments.only != "runs":
        measured = step_times(arguments.steps, use_device(arguments.device))
        write_result(path.with_name(path.stem + "-steps.json"), measured, "families")
        print(step_table(measured))


def runs(path: Path, arguments: argparse.Namespace) -> str:
    """Run every recipe with every method and seed; finished runs are read from the file."""
    results, rows = Results(path), []
    for recipe, model in RECIPES.items():
        places = [f"data.source={arguments.data / recipe}", f"backbone.model={arguments.models / model}"]
        size = SMALL if arguments.small else FULL
        for method in METHODS:
            made = [
                results.run(
                    f"{recipe}, {method}, seed {seed}",
                    as_measured(recipe),
                    [*places, *size, f"method={method}", f"seed={seed}"],
                )
                for seed in range(arguments.seeds)
            ]
            rows.append([recipe, method, *_figures(made)])
    header = ["recipe", "method", "metric", "untouched", "after", "client mean", "worst decile", "MiB up", "seconds"]
    return markdown(header, rows)


def _figures(made: list[dict[str, Any]]) -> list[str]:
    metric = made[0]["metric"]
    before = [summary[f"{metric}_by_round"].get("0") for summary in made]
    return [
        metric.replace("_", " "),
        mean_and_spread([float(value) for value in before]) if None not in before else "",
        mean_and_spread(column(made, metric)),
        mean_and_spread(column(made, f"client_{metric}", "mean")),
        mean_and_spread(column(made, f"client_{metric}", "worst_decile")),
        f"{statistics.mean(column(made, 'bytes_up')) / 2**20:.1f}",
        f"{statistics.mean(column(made, 'seconds')):.0f}",
    ]


def step_times(rounds: int, device: torch.device) -> dict[str, Any]:
    """Time a step with either adapter; all variants take turns, so that other work affects all of them."""
    found: dict[str, Any] = {"machine": machine(), "device": device_name(device), "families": {}}
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH), generator=g).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    for family in FAMILIES:
        seconds = interleave(_variants(family, batch, device), rounds, device)
        found["families"][family] = {
            "milliseconds": {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()},
            "ratio_to_lora": ratio(seconds["MoE"], seconds["LoRA"], blocks=3),
        }
    return found


def _variants(family: str, batch: dict[str, Tensor], device: torch.device) -> dict[str, Callable[[], object]]:
    """Return a step with our experts, and one with LoRA of as many parameters as a token uses."""
    config = MoeAdapterConfig(num_experts=EXPERTS, expert_dim=EXPERT_DIM, top_k=TOP_K)
    low_rank = _backbone(family)
    targets = target_names(low_rank, range(BLOCKS), "query-value")
    ours = attach_adapter(_backbone(family), config)
    lora = attach_adapter(low_rank, lora_config(TOP_K * EXPERT_DIM // 2, 2.0, targets))
    return {"MoE": _step(ours.to(device), batch), "LoRA": _step(lora.to(device), batch)}


def _backbone(family: str) -> nn.Module:
    config = FAMILIES[family](
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=WIDTH // 8,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def _step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, objective = torch.optim.AdamW(parameters, lr=1e-3, fused=True), NextToken()

    def step() -> None:
        objective.loss(token_losses(model, batch), batch["labels"]).backward(inputs=parameters)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_table(found: dict[str, Any]) -> str:
    """Return a table with one line per family."""
    rows = []
    for family, measured in found["families"].items():
        times, (middle, least, most) = measured["milliseconds"], measured["ratio_to_lora"]
        rows.append(
            [family, f"{times['MoE']:.0f}", f"{times['LoRA']:.0f}", f"{middle:.2f} ({least:.2f} to {most:.2f})"]
        )
    return markdown(["family", "MoE, ms a step", "LoRA, ms", "ratio"], rows)


if __name__ == "__main__":
    main()
