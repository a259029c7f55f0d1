"""Prints what a person reads of a finished run: how good it is, where its files are, and which commands come next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fftmoe.backbones import loading_arguments
from fftmoe.cli.client_scores import client_score_lines, sample_lines
from fftmoe.config import Recipe
from fftmoe.report.answer import answer, compared, interval_of
from fftmoe.report.constant import never_given
from fftmoe.report.metric import EXPLAINED, Metric, own_values
from fftmoe.report.next_step import next_step
from fftmoe.report.own_data import own_data_lines
from fftmoe.report.record import RunRecord
from fftmoe.report.verdict import sentence
from fftmoe.setup.load import is_language
from fftmoe.shown import count_of
from fftmoe.store import RunFolder, read_labels


def print_outcome(console: Console, summary: Mapping[str, Any], folder: Path, recipe: Recipe) -> None:
    """Print the result of a finished run.

    Args:
        summary: the contents of `summary.json`. folder: of the run.
    """
    for line in (*_results(summary, recipe), *_places(folder, recipe), *_advice(summary, folder, recipe)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _results(summary: Mapping[str, Any], recipe: Recipe) -> list[str]:
    metric = Metric.of(summary)
    tiers = ", ".join(f"{name} {value:.3f}" for name, value in summary[f"{metric.name}_by_tier"].items())
    found = answer(summary, untrained=is_language(recipe))
    return [
        *([f"\n{said}"] if (said := sentence(summary)) else []),
        *([f"\n{found}"] if found else []),
        f"\n{metric.label} {summary[metric.name]:.3f} on the whole test set{_range(interval_of(summary, metric))}",
        *([] if summary.get("r2") is None else [f"  R² {summary['r2']:.3f}, {EXPLAINED}"]),
        *_generated(summary),
        *_baselines(summary, metric, recipe),
        *([f"  {missed}"] if (missed := never_given(summary)) else []),
        f"  with the experts of each tier: {tiers}",
        *(
            f"  {text}: " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in _spread(summary[key]))
            for key, text in own_values(summary, metric, beside=summary.get("own_data", {})).items()
        ),
        *_local_training(summary, metric),
        *own_data_lines(summary, metric),
        *client_score_lines(summary),
        *sample_lines(summary),
    ]


def _generated(summary: Mapping[str, Any]) -> list[str]:
    """Return how what a language model wrote compares with the completions, if that was asked for."""
    if "generated" not in summary:
        return []
    written = f"exact match {summary['exact_match']:.3f}, ROUGE-L {summary['rouge_l']:.3f}"
    lines = [f"  written after {count_of(summary['generated'], 'test prompt')}: {written}"]
    if "option_accuracy" in summary:
        lines.append(
            f"  the most likely of the options is right: {summary['option_accuracy']:.3f} of "
            f"{count_of(summary['with_options'], 'prompt')} with any"
        )
    return lines


def _spread(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the mean over the clients, and that over the worst tenth where it is of enough clients."""
    return [(name, values[name]) for name in ("mean", "worst_decile") if name in values]


def _range(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _baselines(summary: Mapping[str, Any], metric: Metric, recipe: Recipe) -> list[str]:
    """Return a line for each baseline: its value and interval, or why an asked one has none."""
    lines = []
    for each in compared(summary, untrained=is_language(recipe)):
        if each.value is not None:
            lines.append(f"  {each.what}: {each.value:.3f}{_range(each.interval)}")
        elif each.name in recipe.evaluation.asked:
            lines.append(f"  {each.what}: not measured, because {each.reason}")
    return lines


def _local_training(summary: Mapping[str, Any], metric: Metric) -> list[str]:
    local = summary.get(f"local_only_{metric.name}")
    if not local:
        return []
    gain = metric.gain(summary[metric.name], local["mean"])
    return [
        f"  the federation gains {gain:+.3f} over training alone on the whole test set ({local['mean']:.3f}, mean of "
        f"{count_of(local['num_clients'], 'client')})"
    ]


def _places(folder: Path, recipe: Recipe) -> list[str]:
    """Return where the adapter and the report are, and how Python asks and loads the model."""
    backbone, adapter = recipe.backbone, folder / "adapter"
    reader = "AutoImageProcessor" if backbone.task == "image-classification" else "AutoTokenizer"
    arguments = loading_arguments(
        backbone.model,
        num_labels=len(read_labels(adapter)) or None,
        task=backbone.task,
        pooling=backbone.pooling,
        fourier_features=recipe.fourier_features,
        quantization=backbone.quantization,
    )
    return [
        f"\nadapter  {adapter}",
        f"report   {folder / 'report.html'}",
        "\nload it in Python:",
        "  import fftmoe",
        "  from peft import PeftModel",
        f"  from transformers import {reader}",
        f"  backbone = fftmoe.load_backbone({arguments})",
        f"  model = PeftModel.from_pretrained(backbone, {str(adapter)!r})",
        f"  reader = {reader}.from_pretrained({str(adapter)!r})",
        f"or ask it: fftmoe.predict({str(folder)!r}, [...])",
    ]


def _advice(summary: Mapping[str, Any], folder: Path, recipe: Recipe) -> list[str]:
    """Return what to do next, as the report says it."""
    run = RunFolder(folder)
    over_sites, rows = run.over_sites, run.all_metrics()
    step = next_step(RunRecord(recipe.model_dump(mode="json"), rows, summary, str(folder), over_sites))
    return [f"\nwhat to do next: {step.why}", *([f"  {step.command}"] if step.command else [])]
