"""Gives a model the classification head that a saved adapter was trained with.

`PeftModel.from_pretrained` puts an adapter on whatever model it is given, and PEFT's automatic classes load that model
with two labels, or as many as their caller says. What the head must be is known from the adapter's folder: the names
and shapes of its tensors, and `labels.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from fftmoe.adapter.bound import ADAPTER_WEIGHTS, HEAD_MODULES, LABELS
from fftmoe.adapter.fourier import FourierHead
from fftmoe.adapter.padding import hide_padding, settle_padding_token
from fftmoe.adapter.pooling import MeanPoolClassifier, mean_pooled
from fftmoe.strict import read_small, strict_json

PROBLEM_TYPES = {
    "sequence-classification": "single_label_classification",
    "image-classification": "single_label_classification",
    "multi-label-classification": "multi_label_classification",
    "regression": "regression",
}
"""By task, what transformers calls the kind of problem; it decides the loss for given labels."""

TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "multi-label-classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "causal-lm": "CAUSAL_LM",
    "preference": "CAUSAL_LM",
}
"""By task, what PEFT calls it; its automatic classes and the pipelines of transformers ask for that."""

_PREFIX = "base_model.model."  # of every name in PEFT's file
_POOLED = f"{_PREFIX}backbone."  # of the tensors below a `MeanPoolClassifier`


@dataclass(frozen=True)
class SavedHead:
    """Describes the head of a saved adapter.

    Attributes:
        pooled: it reads the mean of the last hidden states (`MeanPoolClassifier`).
        shapes: of its tensors, by their names in the model.
        labels: the names of its outputs; empty if the folder does not say them.
        problem_type: what transformers calls the kind of problem; None if the folder does not say it.
    """

    pooled: bool
    shapes: Mapping[str, tuple[int, ...]]
    labels: tuple[str, ...]
    problem_type: str | None

    @property
    def num_outputs(self) -> int:
        """Return the rows of the last linear layer."""
        return [shape[0] for name, shape in self.shapes.items() if name.endswith(".weight")][-1]


def saved_head(folder: Path) -> SavedHead | None:
    """Return the head of the adapter in this folder; None if it has none, as that of a language model."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return None
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    heads = {
        name.removeprefix(_PREFIX): shape
        for name, shape in shapes.items()
        if name.removeprefix(_PREFIX).partition(".")[0] in HEAD_MODULES
    }
    if not any(name.endswith(".weight") for name in heads):
        return None
    said = strict_json(read_small(folder / LABELS)) if (folder / LABELS).is_file() else {}
    return SavedHead(
        pooled=any(name.startswith(_POOLED) for name in shapes),
        shapes=heads,
        labels=tuple(said.get("labels", ())),
        problem_type=said.get("problem_type"),
    )


def with_saved_head(model: Any, head: SavedHead | None) -> Any:
    """Return the model with a head of the saved form, whose weights PEFT loads afterwards, and with its labels.

    A model that has such a head already keeps it and only gets the names of the labels.
    """
    if head is None:
        return model
    if head.pooled and not isinstance(model, MeanPoolClassifier):
        model = mean_pooled(model.base_model, head.num_outputs)
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, which are replaced
        for name in dict.fromkeys(key.rpartition(".")[0] for key in head.shapes):
            _fit_layer(model, name, head.shapes)
    _name_labels(model, head)
    if head.problem_type is not None:  # a run saved it, so the model answers as that of the run
        settle_padding_token(model.config)
        hide_padding(model)
    return model


def _fit_layer(model: Any, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace a linear layer of another shape or kind by one of the saved form."""
    try:
        old = model.get_submodule(name)
    except AttributeError:  # PEFT says which tensors have no place
        return
    shape, directions = shapes.get(f"{name}.weight", ()), shapes.get(f"{name}.directions")
    fits = isinstance(old, FourierHead) == (directions is not None)
    if not isinstance(old, nn.Linear) or len(shape) != 2 or (fits and tuple(old.weight.shape) == shape):
        return
    if directions is None:
        new = nn.Linear(shape[1], shape[0], bias=f"{name}.bias" in shapes)
    else:
        new = FourierHead(directions[0], directions[1], shape[0], seed=0)  # the saved directions take its place
    model.set_submodule(name, new.to(old.weight.device).train(old.training))


def _name_labels(model: Any, head: SavedHead) -> None:
    config = model.config
    config.num_labels = head.num_outputs
    if len(head.labels) == head.num_outputs:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {name: label for label, name in enumerate(head.labels)}
    if head.problem_type is not None:
        config.problem_type = head.problem_type
    if hasattr(model, "num_labels"):
        model.num_labels = head.num_outputs
