"""Puts an adapter and a trainable head on a frozen backbone, and runs the result."""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn

from fftmoe.adapter.bound import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    HEAD_MODULES,
    check_adapter_files,
    check_base,
    check_tensors,
)
from fftmoe.adapter.fourier import FourierHead, at_least_float32
from fftmoe.backbones.adapter_folder import ADAPTER_TYPES, check_adapter
from fftmoe.backbones.placement import computing
from fftmoe.backbones.prefix import model_inputs, resumed
from fftmoe.backbones.quiet import quiet_peft
from fftmoe.errors import InputError


def attach_adapter(backbone: nn.Module, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """Wrap the backbone so that only the adapter and the classification head are trained and saved.

    The adapter's weights are float32, whatever the backbone's dtype. `config` is not changed.
    """
    config = copy.deepcopy(config)
    heads = [name for name, _ in backbone.named_children() if name in HEAD_MODULES]
    saved = list(dict.fromkeys([*(getattr(config, "modules_to_save", None) or []), *heads]))
    cast(Any, config).modules_to_save = saved or None
    with quiet_peft():
        model = get_peft_model(backbone, config, adapter_name, autocast_adapter_dtype=True)
    return cast(PeftModel, model.eval())


def load_adapter(backbone: nn.Module, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """Return the backbone with a saved adapter and head, as `PeftModel.from_pretrained(backbone, folder)` gives.

    Raises:
        InputError: the folder is damaged, was saved for another backbone, or was not saved by this package.
    """
    check_adapter(Path(folder))
    base = check_adapter_files(Path(folder))
    if base is not None:
        check_base(base, backbone, folder)
    try:
        with quiet_peft():
            # What PEFT says about missing tensors is an error here.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            config = _saved_config(Path(folder))
            model = PeftModel.from_pretrained(backbone, str(folder), is_trainable=trainable, config=config)
    except InputError:
        raise
    except Exception as error:  # PEFT and safetensors raise errors of many types
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load the adapter in {folder}: {reason}; it is damaged, or belongs to another model"
        ) from error
    _check_complete(model, Path(folder))
    return cast(PeftModel, model.eval())


def _saved_config(folder: Path) -> PeftConfig:
    """Return the configuration of a saved adapter, for a model of no particular task:
    the heads here are known already.
    """
    kind = json.loads((folder / ADAPTER_CONFIG).read_text())["peft_type"]
    adapter_config = ADAPTER_TYPES[kind][0]
    config = adapter_config.from_pretrained(str(folder))
    config.task_type = None
    return config


def _check_complete(model: PeftModel, folder: Path) -> None:
    """Check that the folder has exactly the tensors of the model's adapter, of whichever kind, and of its head."""
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" asks where the base model lies
    check_tensors(load_file(folder / ADAPTER_WEIGHTS), expected, f"the adapter in {folder}")


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the model's logits for a batch of named inputs: [B, C] for classes, [B, S, V] for a language model.

    The model does not get `labels`, because the task computes the loss. If the batch has `prefix_states` [B, S, d],
    they replace what the first blocks would compute, and these blocks do not run (see `enable_resume`).
    """
    with resumed(model, batch.get("prefix_states")), computing(model):
        output = model(**model_inputs(batch))
    return at_least_float32(output if isinstance(output, Tensor) else output.logits)


def features(model: nn.Module, batch: Mapping[str, Tensor], of_tokens: bool = False) -> Tensor:
    """Return the features that the head reads, [B, D]; for a head of several modules, those of the last one.

    Args:
        of_tokens: the head answers for every token, and reads [B, S, D].

    Raises:
        InputError: the model has no head, or its head reads a sequence of features and answers for the whole.
    """
    return _logits_and_features(model, batch, of_tokens)[1]


def _logits_and_features(model: nn.Module, batch: Mapping[str, Tensor], of_tokens: bool) -> tuple[Tensor, Tensor]:
    heads = [module for path, module in model.named_modules() if path.rpartition(".")[2] in HEAD_MODULES]
    if not heads:
        raise InputError(f"this {type(model).__name__} has no classification head; load it for a task that has one")
    read: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        read.append(arguments[0])

    handle = heads[-1].register_forward_pre_hook(keep)
    try:
        answered = logits(model, batch)
    finally:
        handle.remove()
    found = at_least_float32(read.pop())
    if found.ndim != 2 + of_tokens:
        raise InputError(
            f"this model's head reads a sequence of features for each example, shape {list(found.shape)}, but one "
            "vector for each example is needed; set backbone.pooling to mean"
        )
    return answered, found


def head_inputs(model: nn.Module, batch: Mapping[str, Tensor], of_tokens: bool = False) -> Tensor:
    """Return the inputs of the head's linear layer, [B, F] or of tokens [B, S, F]: `features`, or the random Fourier
    features made of them.

    Raises:
        InputError: as for `features`.
    """
    return logits_and_head_inputs(model, batch, of_tokens)[1]


def logits_and_head_inputs(
    model: nn.Module, batch: Mapping[str, Tensor], of_tokens: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the model's logits for a batch, and `head_inputs`, from which the head's linear layer computes them.

    Raises:
        InputError: as for `features`.
    """
    answered, found = _logits_and_features(model, batch, of_tokens)
    lifting = [module for module in model.modules() if isinstance(module, FourierHead)]
    return answered, lifting[-1].lift(found) if lifting else found


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable classification head of an adapted model, by name: "weight" and "bias" for a linear head.

    In a head of several modules the module comes first ("pre_classifier.weight"). A language model has no head.
    """
    heads = _heads(model)
    return {
        (f"{head}.{name}" if len(heads) > 1 else name): parameter
        for head, module in heads.items()
        for name, parameter in module.named_parameters()
    }


@torch.no_grad()
def add_to_head(model: nn.Module, part: Tensor) -> None:
    """Add a matrix to the linear head of an adapted model.

    Args:
        part: [C, F + 1]; its last column is added to the bias.
    """
    head = head_parameters(model)
    head["weight"].add_(part[:, :-1].to(head["weight"]))
    head["bias"].add_(part[:, -1].to(head["bias"]))


def copy_head(source: nn.Module, to: nn.Module) -> None:
    """Copy the classification head of one adapted model into another, with the random features that it uses."""
    heads = _heads(source)
    for name, head in _heads(to).items():
        head.load_state_dict(heads[name].state_dict())


def _heads(model: nn.Module) -> dict[str, nn.Module]:
    heads: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            heads[path.rpartition(".")[2]] = module.modules_to_save[module.active_adapters[0]]
    return heads
