"""Starts warm: takes the adapter of an earlier run as the state before the first round (`start_from`)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fftmoe import adapter
from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.backbones import load_adapter
from fftmoe.backbones.lora import factors_of
from fftmoe.config import Recipe
from fftmoe.errors import InputError, looked_up
from fftmoe.methods.expert_loading import parameters_of
from fftmoe.methods.lora import named_factors
from fftmoe.methods.shared_head import head_tensors
from fftmoe.records import ServerState, Tensors, names
from fftmoe.setup.calibrated import set_temperature
from fftmoe.setup.model import load_bare_backbone
from fftmoe.setup.target_scales import scales_of
from fftmoe.store import Bindings, adapter_of, read_config, read_labels, read_temperature

SAME_SETTINGS = ("activation", "gates", "scale", "shared_targets")  # settings that decide what the same tensors compute


@dataclass(frozen=True)
class WarmStart:
    """Holds an earlier adapter.

    Attributes:
        folder: where it lies. digest: SHA-256 of its weights.
        tensors: by the names of a `ServerState`. label_names: of its head.
        units: its head answers in the units of regression targets, and not in their scales.
    """

    folder: Path
    digest: str
    tensors: Tensors
    label_names: tuple[str, ...]
    units: bool


def load_start(recipe: Recipe, model: Any) -> WarmStart | None:
    """Return the adapter that the recipe starts from; None if it starts with a fresh one.

    Args:
        model: the backbone with a fresh adapter of this recipe.

    Raises:
        InputError: there is no adapter, it is damaged, or it is of another backbone, method or kind.
    """
    if recipe.start_from is None:
        return None
    with looked_up(f"start_from={recipe.start_from!r:.200}"):
        folder = _folder_of(Path(recipe.start_from).expanduser(), recipe.method)
    labels = read_labels(folder)
    found = load_adapter(load_bare_backbone(recipe, labels), folder)
    _check_settings(found, model, folder)
    if (temperature := read_temperature(folder)) is not None:
        set_temperature(found, 1 / temperature)  # the head of a server state is not divided by it
    digest = hashlib.sha256((folder / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    return WarmStart(folder, digest, _tensors_of(found), labels, bool(scales_of(recipe)))


def first_state(fresh: ServerState, start: WarmStart | None, label_names: Sequence[str]) -> ServerState:
    """Return the state before the first round: a fresh one, with the tensors of the earlier adapter in their places.

    The head is taken only where its labels are the same in the same order.

    Raises:
        InputError: the earlier adapter lacks a tensor, or has one of another shape.
    """
    if start is None:
        return fresh
    wanted = {name for name in fresh.tensors if takes_head(start, label_names) or not names.is_head(name)}
    reason = _difference({name: fresh.tensors[name] for name in wanted}, start.tensors)
    if reason is not None:
        raise InputError(
            f"start_from={start.folder}: {reason}; start from an adapter of the same method, budgets and blocks, or "
            "set start_from=off"
        )
    own = {name: start.tensors[name].to(fresh.tensors[name].dtype) for name in sorted(wanted)}
    return replace(fresh, tensors={**fresh.tensors, **own})


def takes_head(start: WarmStart, label_names: Sequence[str]) -> bool:
    """Return whether the head of the earlier adapter is taken too."""
    return start.label_names == tuple(label_names) and not start.units


def start_notes(start: WarmStart | None, label_names: Sequence[str]) -> tuple[str, ...]:
    """Return what a person should know about the start."""
    if start is None or takes_head(start, label_names):
        return ()
    why = "answers in the units of the targets" if start.units else "has other labels, or the same in another order"
    return (f"the head is a new one, because that of {start.folder} {why}",)


def _folder_of(path: Path, method: str) -> Path:
    """Return the folder of the adapter: that of a finished run, or the path itself."""
    if (path / "config.yaml").is_file():
        made_by = read_config(path).get("method", "fft-moe")
        if made_by != method:
            raise InputError(
                f"start_from={path}: method {made_by} trained that run, and this recipe has method {method}; start "
                "from a run of the same method"
            )
        began, path = Bindings.read(path), adapter_of(path)
        if began is not None:
            began.check_adapter(path)
    if not (path / "adapter_config.json").is_file():
        raise InputError(
            f"start_from={path} is no finished run and no adapter: it has no adapter_config.json; name the folder of a "
            "finished run, or the adapter in it"
        )
    return path


def _check_settings(found: Any, model: Any, folder: Path) -> None:
    """Refuse an adapter with whose settings the same tensors compute something else."""
    then, now = (_adapter_settings(each) for each in (found, model))
    changed = [f"{key} was {then.get(key)} and is {now.get(key)}" for key in now if then.get(key) != now[key]]
    if changed:
        raise InputError(
            f"start_from={folder}: that adapter computes something else ({'; '.join(changed)}); give the recipe the "
            "same settings, or start from another adapter"
        )


def _adapter_settings(model: Any) -> Mapping[str, Any]:
    config = model.peft_config["default"]
    if str(config.peft_type).endswith("LORA"):
        return {"kind": "LoRA", "lora.scale": config.lora_alpha / config.r}
    return {"kind": "experts", **{f"adapter.{key}": getattr(config, key) for key in SAME_SETTINGS}}


def _tensors_of(model: Any) -> Tensors:
    """Return the tensors of an adapted model by the names of a `ServerState`."""
    trained = {name: p for block, moe in adapter.blocks(model).items() for name, p in parameters_of(block, moe).items()}
    trained |= {**adapter.shared_projections(model), **named_factors(factors_of(model))}
    return {**head_tensors(model), **{name: p.detach().cpu().float().clone() for name, p in trained.items()}}


def _difference(wanted: Tensors, found: Tensors) -> str | None:
    """Return the first tensor that is missing, has another shape, or has no place; None if all fit.

    A tensor without a place would be lost, and what depends on it would be wrong. A method that trains the head alone
    has no place for experts, which add nothing there.
    """
    without = {name: t for name, t in found.items() if name not in wanted and not names.is_head(name)}
    only_head = all(map(names.is_head, wanted))
    lost = sorted(name for name, t in without.items() if not only_head or (names.is_last_layer(name) and t.any()))
    if lost:
        return f"that adapter has a tensor {lost[0]}, which the server of this method does not hold"
    for name, tensor in sorted(wanted.items()):
        if name not in found:
            return f"that adapter has no tensor {name}"
        if found[name].shape != tensor.shape:
            return f"its tensor {name} has the shape {list(found[name].shape)}, and {list(tensor.shape)} is needed"
    return None
