"""Adds a LoRA to the weights of its backbone: a model that needs neither PEFT nor this package.

A mixture of experts cannot be added to weights; the LoRA that imitates it can, and `export.json` has both: how well the
LoRA imitates the mixture, and that the merged weights give the same logits as the LoRA.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fftmoe.backbones import POOLED, load_reader
from fftmoe.backbones.quiet import quiet_transformers
from fftmoe.errors import InputError
from fftmoe.exports.check import REORDERED, SAME, answers, difference, probes, require
from fftmoe.exports.folder import file_digest
from fftmoe.exports.load import fresh_backbone
from fftmoe.exports.plain import open_plain
from fftmoe.store import disk_errors
from fftmoe.trained.run import FinishedRun, TrainedModel

WEIGHTS = "model.safetensors"


def check_mergeable(run: FinishedRun) -> None:
    """Refuse a run whose merged weights would be no model of transformers.

    Raises:
        InputError: they would be none.
    """
    if run.backbone.quantization != "none":
        raise InputError(
            f"the backbone of this run is quantized ({run.backbone.quantization}), and nothing can be added to its "
            "weights without loss; export --to lora"
        )
    if run.task in POOLED and run.backbone.pooling == "mean":
        raise InputError(
            "the model of this run has a head on pooled features, which no model of transformers has, so merged "
            "weights would be only a part of it; export --to lora, onnx or torch-export, or train with "
            "backbone.pooling=native and head.features=linear"
        )
    if run.backbone.fourier_features:
        raise InputError(
            "the head of this run reads random features, which no model of transformers computes, so merged weights "
            "would be only a part of the model; export --to lora, onnx or torch-export, or train with "
            "head.features=linear"
        )


def merged_model(trained: TrainedModel, lora: Path) -> tuple[Any, dict[str, float]]:
    """Return the backbone with an exported LoRA in its weights, float32, and how its logits compare with those of the
    LoRA.

    Args:
        lora: a folder that `save_plain` has written.

    Raises:
        RunError: the merged model gives other logits.
    """
    batches = probes(trained)
    adapted = open_plain(trained.run, lora)
    expected = answers(adapted, batches)
    merged = adapted.merge_and_unload()
    return merged, require(difference(answers(merged, batches), expected), REORDERED, "merged model")


def export_merged(trained: TrainedModel, lora: Path, folder: Path) -> dict[str, Any]:
    """Write the merged weights as safetensors, with the configuration and the tokenizer.

    Returns:
        What `export.json` records about this format.

    Raises:
        RunError: the folder gives other logits than the LoRA.
    """
    merged, compared = merged_model(trained, lora)
    with disk_errors(folder), quiet_transformers():
        merged.save_pretrained(folder)
        load_reader(trained.run.backbone.model, trained.run.reads_images).save_pretrained(folder)
    _check_saved(trained, merged, folder)
    return {**compared, "weights": _digest(folder)}


def _check_saved(trained: TrainedModel, merged: Any, folder: Path) -> None:
    batches = probes(trained)
    run = trained.run
    saved = fresh_backbone(replace(run, backbone=replace(run.backbone, model=str(folder))))
    require(difference(answers(saved, batches), answers(merged, batches)), SAME, "merged model")


def _digest(folder: Path) -> str | Mapping[str, str]:
    """Return the SHA-256 of the weights, or of each of their parts."""
    parts = {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))}
    return parts.get(WEIGHTS, parts)
