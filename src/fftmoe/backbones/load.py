"""Loads and freezes a foundation model.

A backbone is frozen and in evaluation mode: dropout is off, and equal inputs give equal features.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from fftmoe.adapter.bound import HEAD_MODULES
from fftmoe.adapter.fourier import FourierHead
from fftmoe.adapter.padding import hide_padding, settle_padding_token
from fftmoe.adapter.pooling import MeanPoolClassifier, mean_pooled
from fftmoe.adapter.saved_head import PROBLEM_TYPES
from fftmoe.backbones import trust
from fftmoe.backbones.find import is_hub_id, resolve_model
from fftmoe.backbones.quantize import check_drawn, check_quantization, quantization_options, settle_quantized
from fftmoe.backbones.quiet import quiet_transformers
from fftmoe.backbones.stored import computes_in_16_bits, keep_stored
from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.errors import InputError, did_you_mean
from fftmoe.rng import generator

POOLINGS = ("mean", "native")
POOLED = ("sequence-classification", "multi-label-classification", "regression")  # tasks on a text as a whole

# Heads are trained, and a pooler gets random weights where the checkpoint has none.
_NOT_QUANTIZED = (*HEAD_MODULES, "lm_head", "pooler")

AUTO_MODELS: dict[str, Any] = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "image-classification": transformers.AutoModelForImageClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "preference": transformers.AutoModelForCausalLM,
    "token-classification": transformers.AutoModelForTokenClassification,
    "multi-label-classification": transformers.AutoModelForSequenceClassification,
    "regression": transformers.AutoModelForSequenceClassification,
}
_HEAD_STD = 0.02


def load_backbone(
    model: str,
    *,
    task: str = "sequence-classification",
    num_labels: int | None = None,
    pooling: str = "mean",
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    head_bias: float = 0.0,
    fourier_features: int = 0,
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
    device: str | torch.device = "cpu",
    multiplies_in: torch.dtype = torch.float32,
) -> nn.Module:
    """Load a frozen backbone in evaluation mode; code that comes with a model is never run.

    Args:
        model: "builtin:minilm", "builtin:smollm2", a local folder, or a hub id.
        task: "sequence-classification", "image-classification", "token-classification", "multi-label-classification",
            "regression", "causal-lm" or "preference".
        num_labels: C, for every task but the last two; for a regression the number of targets of a text.
        pooling: for tasks on a text as a whole, "mean" (a `MeanPoolClassifier`) or "native" (the model's own head).
        label_names: C names, stored in the model's configuration.
        seed: of the weights that the checkpoint does not have, mainly the head's.
        head_bias: the initial bias of every class, see `fftmoe.head.HeadLoss.init_bias`.
        fourier_features: if above 0, the head reads this number of random Fourier features (`FourierHead`).
        dtype: of the frozen weights.
        quantization: "none", or "8bit" or "4bit" for the weights of all linear layers except the head's.
        device: where quantised weights are put; other weights are loaded on the CPU, and the caller moves them.
        multiplies_in: the dtype in which the model will multiply (`place`). The weights of products that the checkpoint
            stores in it keep it where that changes no result (`keep_stored`); all others get `dtype`.

    Raises:
        InputError: the model cannot be found or loaded, or an argument is unknown or missing.
    """
    _check_choice("task", task, tuple(AUTO_MODELS))
    _check_choice("pooling", pooling, POOLINGS)
    check_quantization(quantization)
    as_stored = multiplies_in != torch.float32 and dtype == torch.float32 and quantization == "none"
    options = _label_options(task, num_labels, label_names) | {"dtype": "auto" if as_stored else dtype}
    options |= quantization_options(quantization, torch.device(device), _NOT_QUANTIZED)
    loaded = _load_with_head(model, task, pooling, seed, options)
    if as_stored and computes_in_16_bits(loaded):
        loaded = _load_with_head(model, task, pooling, seed, {**options, "dtype": dtype})
    elif as_stored:
        keep_stored(loaded, multiplies_in)
    if fourier_features:
        _lift_head(loaded, fourier_features, seed)
    _fill_head_bias(loaded, head_bias)
    return _frozen(loaded, task)


def loading_arguments(model: str, **options: Any) -> str:
    """Return the arguments of a call of `load_backbone` as Python, such as `"'builtin:minilm', num_labels=3"`.

    Args:
        options: keyword arguments of `load_backbone`; those that are equal to their defaults are left out.
    """
    defaults = inspect.signature(load_backbone).parameters
    given = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name].default]
    return ", ".join([repr(model), *given])


def _check_choice(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise InputError(f"unknown {name} {value!r}{did_you_mean(value, valid)}")


def _load_with_head(model: str, task: str, pooling: str, seed: int, options: dict[str, Any]) -> Any:
    """Return the model with the head of its task: on mean-pooled features, or the head that transformers gives it."""
    if task in POOLED and pooling == "mean":
        return _mean_pooled(_from_pretrained(transformers.AutoModel, model, seed, options), options["num_labels"], seed)
    return _from_pretrained(AUTO_MODELS[task], model, seed, options)


def _label_options(task: str, num_labels: int | None, label_names: Sequence[str] | None) -> dict[str, Any]:
    """Return arguments of `from_pretrained` for the labels; none for a language model."""
    if task in LANGUAGE_TASKS:
        return {}
    if num_labels is None or num_labels < 1:
        raise InputError(f"task {task!r} needs num_labels, which is {num_labels}; give a number of at least 1")
    options: dict[str, Any] = {"num_labels": num_labels}
    if task in PROBLEM_TYPES:
        options["problem_type"] = PROBLEM_TYPES[task]
    if label_names is not None:
        if len(label_names) != num_labels:
            raise InputError(
                f"{len(label_names)} label_names for num_labels={num_labels}; give as many names as labels"
            )
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: label for label, name in enumerate(label_names)}
    return options


def _from_pretrained(auto: Any, model: str, seed: int, options: dict[str, Any]) -> nn.Module:
    source = resolve_model(model)
    # transformers draws the weights that the checkpoint lacks from global state; below they are drawn from `seed`.
    with explained_errors(model, "model"), quiet_transformers(), torch.random.fork_rng(devices=[]):
        trust.check_settings(source, trust.MODEL_CONFIG)
        if Path(source).is_dir():
            trust.check_weights(Path(source))
        else:
            trust.check_hub_files(source)
        loaded, info = auto.from_pretrained(
            source,
            **options,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if is_hub_id(model):  # an adapter names the model so, also where a local copy was read
        loaded.name_or_path = loaded.config.name_or_path = model
    fresh = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    check_drawn(loaded, fresh)
    source_of_init = generator(seed, "head")
    for name, module in loaded.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in fresh:
            _init_linear(module, source_of_init)
    return loaded


def _init_linear(linear: nn.Linear, source: torch.Generator) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=source) * _HEAD_STD)
        if linear.bias is not None:
            linear.bias.zero_()


def _lift_head(model: nn.Module, num_features: int, seed: int) -> None:
    heads = {name: child for name, child in model.named_children() if name in HEAD_MODULES}
    name, linear = next(iter(heads.items()), ("", None))
    if len(heads) != 1 or not isinstance(linear, nn.Linear):
        raise InputError(
            f"head.features=fourier needs a model whose head is one linear layer; the head of this model is "
            f"{', '.join(type(head).__name__ for head in heads.values()) or 'absent'}; set backbone.pooling to mean, "
            "or head.features to linear"
        )
    with torch.random.fork_rng(devices=[]):
        lifted = FourierHead(linear.in_features, num_features, linear.out_features, seed)
    setattr(model, name, lifted)


def _fill_head_bias(model: nn.Module, value: float) -> None:
    linears = [
        module
        for name, child in model.named_children()
        if name in HEAD_MODULES
        for module in child.modules()
        if isinstance(module, nn.Linear)
    ]
    # The last linear layer computes the logits; the `score` of a decoder has no bias.
    if value != 0.0 and linears and linears[-1].bias is not None:
        nn.init.constant_(linears[-1].bias, value)


def _mean_pooled(backbone: nn.Module, num_labels: int, seed: int) -> MeanPoolClassifier:
    model = mean_pooled(backbone, num_labels)
    _init_linear(model.classifier, generator(seed, "head"))
    return model


def _frozen(model: Any, task: str) -> Any:
    """Return the loaded model in evaluation mode, with settings under which equal texts give equal features."""
    settle_quantized(model)
    model.config.use_cache = False  # training needs no key-value cache; `generate` switches its own cache on
    settle_padding_token(model.config)
    if task not in LANGUAGE_TASKS:  # a language model answers for every place, and masks those that are filled
        hide_padding(model)
    return model.requires_grad_(False).eval()


@contextmanager
def explained_errors(model: str, what: str) -> Iterator[None]:
    """Report in one sentence what is wrong with a model's files; libraries raise errors of many types."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise InputError(
            f"cannot load the {what} of {model!r} ({reason:.500}); name a local folder with a model, or a hub id that "
            "is cached or can be reached"
        ) from error
