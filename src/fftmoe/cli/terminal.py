"""What a finished run prints: how good it is, where its files are, and which commands come next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fftmoe.backbones import loading_arguments
from fftmoe.config import Recipe
from fftmoe.report.metric import OWN_MIX, Metric
from fftmoe.report.verdict import sentence
from fftmoe.setup.load import is_language, reads_images
from fftmoe.shown import quoted
from fftmoe.store import read_labels


def print_outcome(console: Console, summary: Mapping[str, Any], folder: Path, recipe: Recipe) -> None:
    """Print the result of a finished run.

    Args:
        summary: the contents of `summary.json`. folder: of the run.
    """
    for line in (*_results(summary), *_next_steps(folder, recipe)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _results(summary: Mapping[str, Any]) -> list[str]:
    metric = summary["metric"]
    tiers = ", ".join(f"{name} {value:.3f}" for name, value in summary[f"{metric}_by_tier"].items())
    lines = [
        *([f"\n{found}"] if (found := sentence(summary)) else []),
        f"\n{metric.replace('_', ' ')} {summary[metric]:.3f} on the whole test set",
        f"  with the experts of each tier: {tiers}",
    ]
    for key, text in OWN_MIX.items():
        if (key := key.replace("accuracy", metric)) in summary:
            mean, worst = summary[key]["mean"], summary[key]["worst_decile"]
            lines.append(f"  {text}: mean {mean:.3f}, worst decile {worst:.3f}")
    if local := summary.get(f"local_only_{metric}"):
        sign = -1 if Metric.of(summary).lower_is_better else 1
        lines.append(
            f"  with local training only: {local['mean']:.3f}, mean of {local['num_clients']} clients; "
            f"the federation gains {sign * (summary[metric] - local['mean']):+.3f}"
        )
    return lines


def _next_steps(folder: Path, recipe: Recipe) -> list[str]:
    backbone = recipe.backbone
    arguments = loading_arguments(
        backbone.model,
        num_labels=len(read_labels(folder / "adapter")) or None,
        task=backbone.task,
        pooling=backbone.pooling,
        fourier_features=recipe.fourier_features,
        quantization=backbone.quantization,
    )
    measure = f"\nor measure it:  fftmoe evaluate {quoted(folder)}"
    label = f"\nor label a text:  fftmoe predict {quoted(folder)} 'some text'"
    return [
        f"\nadapter  {folder / 'adapter'}",
        f"report   {folder / 'report.html'}",
        "\nload it in Python:",
        "  import fftmoe",
        "  from peft import PeftModel",
        f"  backbone = fftmoe.load_backbone({arguments})",
        f"  model = PeftModel.from_pretrained(backbone, {str(folder / 'adapter')!r})",
        measure if reads_images(recipe) or is_language(recipe) else label,
    ]
