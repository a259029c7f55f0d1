"""Says which modules the adapter wraps in each model family, and how a wrapped module is called.

The adapter's output is added to the output of the feed-forward network, before the residual addition and the norm that
follow: y = FFN(x) + s * MoE(x), where x is the input of the feed-forward network.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from fftmoe.errors import InputError
from fftmoe.shown import count_of

# How the wrapped module is called.
#   "input":    base(x);           becomes base(x) + MoE(x)
#   "residual": base(h, x), which computes norm(dense(h) + x); becomes base(h, x + MoE(x))
Call = Literal["input", "residual"]

ModuleNames = str | Sequence[str]


class ModelFamily(NamedTuple):
    """Holds one row of the table.

    Attributes:
        pattern: a regular expression for the names of the wrapped modules; its group is the block index.
        call: how these modules are called.
        in_tuples: whether a block returns its states as the first of a tuple.
    """

    pattern: str
    call: Call
    in_tuples: bool = False


# BertOutput and its copies: `output` of layer N (not `attention.output`), a post-norm block. x is its second argument,
# the output of the attention block, so MoE(x) is added within LayerNorm(dense(h) + x).
_BERT = ModelFamily(r"(?:.*\.)?encoder\.layer\.(\d+)\.output", "residual")
# `mlp` of layer N. In most of these x has passed the norm, and MoE(x) is added before the residual addition; OLMo 2 and
# Gemma have a norm after the feed-forward network, which MoE(x) then passes as well.
_LAYERS = ModelFamily(r"(?:.*\.)?layers\.(\d+)\.mlp", "input")
# The same with blocks that are called `h`. BLOOM's `mlp` adds the residual, its second argument, by itself.
_H = ModelFamily(r"(?:.*\.)?h\.(\d+)\.mlp", "input")

FAMILIES: dict[str, ModelFamily] = {
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(("deberta-v2", "mpnet"), _BERT._replace(in_tuples=True)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "modernbert", "olmo2"), _LAYERS),
    **dict.fromkeys(("phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "smollm3", "vit"), _LAYERS),
    **dict.fromkeys(("bloom", "falcon"), _H._replace(in_tuples=True)),
    "gpt2": _H,
    # `ffn` of layer N, post-norm: MoE(x) is added before output_layer_norm(ffn(x) + x).
    "distilbert": ModelFamily(r"(?:.*\.)?layer\.(\d+)\.ffn", "input"),
    # `mlp` of layer N, pre-norm: MoE(x) is scaled with it by layer_scale2.
    "dinov2": ModelFamily(r"(?:.*\.)?encoder\.layer\.(\d+)\.mlp", "input"),
    # Only the tower of images, which classifies.
    "clip": ModelFamily(r"(?:.*\.)?vision_model\.encoder\.layers\.(\d+)\.mlp", "input"),
}

_TWO_STACKS = "it has an encoder and a decoder, and an adapter of fftmoe has one list of blocks"
_NO_MODULE = "the two layers of its feed-forward network are in no module of their own"
NO_PLACE: dict[str, str] = {
    "albert": "it applies the same block several times, and each adapted block needs experts of its own",
    "bart": f"{_TWO_STACKS}; {_NO_MODULE}",
    "gemma3": "it reads images and texts; its text model alone (gemma3_text) is known",
    "mt5": _TWO_STACKS,
    "opt": _NO_MODULE,
    "swin": "its blocks have different widths, and all experts of a pool have one",
    "t5": _TWO_STACKS,
    "whisper": "it reads sound, and no task of fftmoe does",
}
"""Well-known families that have no place for the adapter, each with the reason."""

# Names that feed-forward networks usually have, to suggest modules of an unknown model.
_LIKELY_NAMES = re.compile(r"(?:.*\.)?(?:mlp|ffn|feed_forward|feedforward|fc|ff|DenseReluDense)")


class AdapterSite(NamedTuple):
    """Names one feed-forward network to adapt: module name, block index, model dim, and how it is called."""

    name: str
    block: int
    dim: int
    call: Call


def find_sites(
    model: nn.Module,
    *,
    target_modules: ModuleNames | None = None,
    exclude_modules: ModuleNames | None = None,
    blocks: Sequence[int] | str | None = None,
) -> list[AdapterSite]:
    """Return the feed-forward networks to adapt, in depth order.

    Args:
        model: a transformers model.
        target_modules: which modules to adapt: a regular expression for the whole name, or a list of names or endings.
            The block index is then the order of appearance, and modules that the family's row does not name are called
            with x only. None: the modules of the model's family.
        exclude_modules: modules to leave out, in the same form.
        blocks: which of the blocks found (`select_blocks`).

    Raises:
        InputError: the family is unknown, nothing matches, or `blocks` is out of range.
    """
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", None))
    family = FAMILIES.get(model_type)
    if family is None and target_modules is None:
        raise InputError(_unknown_family(model, model_type))
    sites: list[AdapterSite] = []
    for name, module in model.named_modules():
        match = re.fullmatch(family.pattern, name) if family else None
        chosen = match is not None if target_modules is None else _matches(name, target_modules)
        if not chosen or (exclude_modules is not None and _matches(name, exclude_modules)):
            continue
        block = int(match[1]) if match and target_modules is None else len(sites)
        call = family.call if family and match else "input"
        dim = hidden_size(model) if match else _checked_dim(name, module)
        sites.append(AdapterSite(name, block, dim, call))
    if not sites:
        pattern = family.pattern if target_modules is None and family else target_modules
        raise InputError(f"no module of this {model_type} model matches {pattern!r}; {_how_to_name_modules(model)}")
    selected = select_blocks(blocks, len(sites))
    return [site for site in sorted(sites, key=lambda site: site.block) if site.block in selected]


def block_dims(
    model: nn.Module, blocks: Sequence[int] | str | None = None, target_modules: ModuleNames | None = None
) -> dict[int, int]:
    """Return the model dim of every block that `blocks` names, by block index in depth order; arguments as for
    `find_sites`.

    Raises:
        InputError: as for `find_sites`; also, the named modules have different widths.
    """
    found = {site.block: site.dim for site in find_sites(model, target_modules=target_modules, blocks=blocks)}
    if len(set(found.values())) > 1:
        raise InputError(
            f"the modules to adapt have the widths {sorted(set(found.values()))}, and all experts of a pool have one; "
            "name modules of one width, or choose among them with blocks"
        )
    return found


def select_blocks(blocks: Sequence[int] | str | None, num_blocks: int) -> set[int]:
    """Return the block indices that `blocks` names: "all" or None, "last-third", "last-N", or a list of indices.

    A third of the blocks is rounded up.

    Raises:
        InputError: `blocks` has another form, or names a block that the model does not have.
    """
    if blocks is None or blocks == "all":
        return set(range(num_blocks))
    if blocks == "last-third":
        return set(range(num_blocks - -(-num_blocks // 3), num_blocks))
    if isinstance(blocks, str):
        match = re.fullmatch(r"last-([1-9]\d*)", blocks)
        if match is None:
            raise InputError(
                f"blocks={blocks!r}; use 'all', 'last-third', 'last-N' such as 'last-2', or a list of indices"
            )
        if int(match[1]) > num_blocks:
            raise InputError(
                f"blocks={blocks!r}, but the model has {count_of(num_blocks, 'block')}; use 'last-{num_blocks}' or "
                "fewer"
            )
        return set(range(num_blocks - int(match[1]), num_blocks))
    outside = [block for block in blocks if not 0 <= block < num_blocks]
    if outside or not blocks:
        raise InputError(
            f"blocks={list(blocks)}, but the model has {count_of(num_blocks, 'block')}; name at least one index "
            f"between 0 and {num_blocks - 1}"
        )
    return set(blocks)


def _matches(name: str, names: ModuleNames) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == ending or name.endswith(f".{ending}") for ending in names)


def hidden_size(model: Any) -> int:
    """Return d, the width of a model's hidden states; of a model of texts and images, that of its images."""
    config = model.config
    return int(getattr(config, "vision_config", config).hidden_size)


def _checked_dim(name: str, module: nn.Module) -> int:
    """Return the width of a module that maps states to states of the same width.

    Raises:
        InputError: its linear layers show that it does not.
    """
    linears = [child for child in module.modules() if isinstance(child, nn.Linear)]
    if not linears:
        raise InputError(
            f"target module {name!r} ({type(module).__name__}) has no nn.Linear; name feed-forward modules"
        )
    first, last = linears[0].in_features, linears[-1].out_features
    if first != last:
        raise InputError(
            f"target module {name!r} ({type(module).__name__}) maps {count_of(first, 'number')} to {last}, and the "
            "output of the experts, which is added to it, is as wide as its input; name modules that hold a whole "
            "feed-forward network"
        )
    return first


def _fits(name: str, module: nn.Module) -> bool:
    try:
        _checked_dim(name, module)
    except InputError:
        return False
    return True


def _unknown_family(model: nn.Module, model_type: str) -> str:
    if model_type in NO_PLACE:
        return (
            f"a {model_type} model cannot be adapted by itself, because {NO_PLACE[model_type]}; use another model, or "
            f"{_how_to_name_modules(model)}"
        )
    return (
        f"model_type={model_type!r} is not a model family that fftmoe knows "
        f"({', '.join(sorted(FAMILIES))}); {_how_to_name_modules(model)}"
    )


def _how_to_name_modules(model: nn.Module) -> str:
    candidates = [
        name for name, module in model.named_modules() if _LIKELY_NAMES.fullmatch(name) and _fits(name, module)
    ]
    advice = (
        "name its feed-forward modules, each of which is called with its input only, with adapter.target_modules in a "
        "recipe, or target_modules in Python: a regular expression or a list of endings, e.g. "
        "target_modules=r'.*layers\\.\\d+\\.mlp' or target_modules=['mlp']"
    )
    if candidates:
        shown = [*candidates[:4], *(["..."] if candidates[4:] else [])]
        advice += f". Candidates in this model: {', '.join(shown)}"
    return advice
