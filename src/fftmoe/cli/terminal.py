"""What the verbs print: a finished run's outcome, and a plan's forecast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from fftmoe.config import Recipe
from fftmoe.cost.analytic import Forecast, StatisticsCost, TierCost
from fftmoe.cost.measured import MachineProfile
from fftmoe.report.metric import OWN_MIX, Metric
from fftmoe.report.progress import size
from fftmoe.setup.load import is_language, reads_images
from fftmoe.store import read_labels

CLIENTS_SHOWN = 20


def print_outcome(console: Console, summary: dict[str, Any], folder: Path, recipe: Recipe) -> None:
    """What a person wants to know of a finished run: how good it is, where it lies, and what to type next."""
    metric = summary["metric"]
    shown = metric.replace("_", " ")
    console.print(f"\n{shown} {summary[metric]:.3f} on the whole test set", highlight=False)
    tiers = ", ".join(f"{name} {value:.3f}" for name, value in summary[f"{metric}_by_tier"].items())
    console.print(f"  used as each tier would: {tiers}", highlight=False)
    for key, name in OWN_MIX.items():
        if (key := key.replace("accuracy", metric)) in summary:
            mean, worst = summary[key]["mean"], summary[key]["worst_decile"]
            console.print(f"  {name}: mean {mean:.3f}, worst decile {worst:.3f}", highlight=False)
    if alone := summary.get(f"local_only_{metric}"):
        better = -1 if Metric(metric).lower_is_better else 1
        gain = better * (summary[metric] - alone["mean"])
        console.print(
            f"  a client that trains alone: {alone['mean']:.3f}, mean of {alone['num_clients']} clients; "
            f"the federation gains {gain:+.3f}",
            highlight=False,
            soft_wrap=True,
        )
    labels = len(read_labels(folder / "adapter"))
    lines = (
        f"\nadapter  {folder / 'adapter'}",
        f"report   {folder / 'report.html'}",
        "\nload it in Python:",
        "  import fftmoe",
        "  from peft import PeftModel",
        f"  backbone = fftmoe.load_backbone({recipe.backbone.model!r}{_load_options(recipe, labels)})",
        f"  model = PeftModel.from_pretrained(backbone, {str(folder / 'adapter')!r})",
        f"\nor measure it:  fftmoe evaluate {folder}"
        if reads_images(recipe) or is_language(recipe)
        else f"\nor label a text:  fftmoe predict {folder} 'some text'",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _load_options(recipe: Recipe, num_labels: int) -> str:
    """The arguments of `load_backbone` that differ from its defaults, as Python."""
    backbone, lifted = recipe.backbone, recipe.fourier_features
    given = {
        "num_labels": num_labels,
        "task": "" if backbone.task == "sequence-classification" else backbone.task,
        "pooling": "" if backbone.pooling == "mean" else backbone.pooling,
        "fourier_features": lifted,
        "quantization": "" if backbone.quantization == "none" else backbone.quantization,
    }
    return "".join(f", {name}={value!r}" for name, value in given.items() if value)


def print_forecast(console: Console, forecast: Forecast, all_clients: bool) -> None:
    """What each tier costs, and what the first twenty clients (or all) will hold."""
    heads = ("tier", "clients", "uses", "blocks", "down", "up ≤", "trained", "memory", "MFLOP")
    some_experts = any(forecast.experts.values())
    table = Table(*(Column(head, no_wrap=True) for head in heads), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for tier in forecast.tiers:
        budget = tier.budget
        table.add_row(
            budget.name,
            str(len(tier.clients)),
            _uses(tier, some_experts),
            ranges(budget.blocks),
            size(tier.bytes_down),
            size(tier.bytes_up),
            f"{tier.trainable_parameters:,}",
            size(tier.training_bytes),
            f"{tier.flops_per_token / 1e6:.2f}",
        )
    console.print(table)
    uses = "experts a token activates, of those a client holds in each block" if some_experts else "LoRA's rank"
    for line in (
        *((f"uses: {uses}.",) if some_experts or forecast.tiers[0].rank else ()),
        "down, up: one client's messages in one round.",
        "memory: adapter and head with gradients and AdamW moments.",
        "trained: parameters. MFLOP: the adapter's for one token, forward and backward.",
        f"{forecast.rounds} rounds of {forecast.clients_per_round} clients; the frozen backbone takes "
        f"{size(forecast.backbone_bytes)}, shared by worker processes where its checkpoint is float32 safetensors.",
        _prefix_line(forecast),
        *((_sums_line(forecast.sums),) if forecast.sums else ()),
        "",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    shown = list(forecast.experts.items())[: None if all_clients else CLIENTS_SHOWN]
    tier_of = {client: tier.budget.name for tier in forecast.tiers for client in tier.clients}
    for client_id, experts in shown:
        held = "  ".join(f"block {block}: {ranges(ids)}" for block, ids in experts.items())
        facts = f"client {client_id:>3}  {tier_of[client_id]:<8} {forecast.num_examples[client_id]:>6} examples  "
        console.print((facts + held).rstrip(), highlight=False, soft_wrap=True)
    if len(shown) < len(forecast.experts):
        console.print(f"… and {len(forecast.experts) - len(shown)} more clients (--clients lists all)", highlight=False)


def print_profile(console: Console, found: MachineProfile) -> None:
    """What was measured of this machine, the recipe's tiers on it, and the largest budget that fits."""
    console.print(
        f"\nmemory: {found.available_mib:.0f} MiB free of {found.total_mib:.0f}; this process took "
        f"{found.process_mib:.0f} with the largest budget that was timed",
        highlight=False,
        soft_wrap=True,
    )
    heads = ("tier", "uses", "blocks", "seconds a round", "memory of the process")
    table = Table(*(Column(head, no_wrap=True) for head in heads), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for fit in (*found.tiers, found.chosen):
        budget = fit.budget
        table.add_row(
            budget.name,
            f"{budget.top_k} of {budget.experts}",
            ranges(budget.blocks),
            f"{fit.seconds:.3g}",
            f"{fit.memory_mib:.0f} MiB",
        )
    console.print(table)
    uplink = found.limits.uplink_mbit
    for line in (
        f"seconds: of one client's round of {found.steps:g} steps, alone on a core"
        + (f", with its upload at {uplink:g} Mbit/s." if uplink is not None else "; the network is not counted."),
        f"measured: the largest within {found.limits.deadline_seconds:g} s and {found.limits.memory_mib:.0f} MiB; "
        "first more blocks, then more experts, then more of them for a token.",
        f"what bounds it: {found.bound}.",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _uses(tier: TierCost, some_experts: bool) -> str:
    if tier.rank is not None:
        return f"rank {tier.rank}"
    return f"{tier.budget.top_k} of {tier.budget.experts}" if some_experts else "head"


def _prefix_line(forecast: Forecast) -> str:
    kept = f"what lies below the first adapted block is computed once, {size(forecast.prefix_bytes)} on disk"
    if forecast.prefix_refused is None:
        return f"{kept}."
    refused = f"not cached: {forecast.prefix_refused}."
    return f"{kept}; of some examples {refused}" if forecast.prefix_bytes else f"the frozen prefix is {refused}"


def _sums_line(sums: StatisticsCost) -> str:
    when, gets = "once, before the first round", size(sums.bytes_first)
    if sums.every is not None:
        gets += f" ({size(sums.bytes_down)} after a round)"
        then = "round" if sums.every == 1 else f"{sums.every} rounds and after the last"
        when = f"{sums.times} times: before the first round, then after every {then}"
    return (
        f"sums, from which the head is solved: besides, every client gets {gets} and sends at "
        f"most {size(sums.bytes_up)}, {when}."
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: `0-3 7 9-11`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
