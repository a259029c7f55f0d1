"""Loads the model of a finished run: the frozen backbone with the saved adapter and head."""

from typing import Any, cast

import torch
from torch import nn

from fftmoe import adapter
from fftmoe.backbones import (
    find_device,
    find_precision,
    fingerprint,
    load_adapter,
    load_backbone,
    load_image_processor,
    load_tokenizer,
    place,
)
from fftmoe.data import tokenizer_digest
from fftmoe.store.bindings import differences, require_same
from fftmoe.trained.run import FinishedRun, TrainedModel


def load_trained(run: FinishedRun, top_k: int | None = None, *, exact: bool = False) -> TrainedModel:
    """Load the saved adapter of a run on its backbone.

    Args:
        top_k: how many experts a token uses; None keeps the value of the largest tier.
        exact: compute in float32 on the CPU, whatever device and precision the run used.

    Raises:
        InputError: the saved adapter cannot be loaded, or `top_k` is above the number of experts; or labels, tokenizer
            or backbone are not those that the run is bound to.
    """
    device = find_device("cpu" if exact else "auto")  # the device of the run may not exist on this machine
    precision = find_precision("float32" if exact else run.precision, device)
    model = place(load_adapter(bare_backbone(run, device, precision), run.adapter), device, precision)
    check_bound(run, model)
    use_top_k(model, top_k)
    return TrainedModel(run, model)


def check_bound(run: FinishedRun, model: Any) -> None:
    """Compare the parts of a finished run with those that it was trained with.

    Raises:
        InputError: labels, tokenizer or backbone are others; the message says which.
    """
    if run.began is None:
        return
    reads = load_image_processor if run.reads_images else load_tokenizer
    reader = reads(run.backbone.model)
    now: dict[str, Any] = {
        "tokenizer": repr(reader) if run.reads_images else tokenizer_digest(cast(Any, reader)),
        "backbone": fingerprint(model),
    }
    if run.label_names:
        now["labels"] = list(run.label_names)
    require_same(
        f"the model of {run.folder} cannot be used",
        differences(run.began.values, now),
        run.accept_changes,
        "restore what it was trained with",
    )


def bare_backbone(run: FinishedRun, device: torch.device, multiplies_in: torch.dtype = torch.float32) -> nn.Module:
    """Return the frozen backbone of a run without its adapter; the head has its initial values.

    Args:
        device, multiplies_in: see `load_backbone`.
    """
    return load_backbone(
        run.backbone.model,
        task=run.task,
        num_labels=len(run.label_names),
        label_names=run.label_names or None,
        pooling=run.backbone.pooling,
        fourier_features=run.backbone.fourier_features,
        quantization=run.backbone.quantization,
        device=device,
        multiplies_in=multiplies_in,
    )


def use_top_k(model: Any, top_k: int | None) -> None:
    """Let every token use `top_k` experts in each adapted block; None changes nothing.

    Raises:
        InputError: `top_k` is above the number of experts.
    """
    if top_k is not None:
        for moe in adapter.blocks(model).values():
            moe.view(top_k)
