"""A saved adapter is opened with all of its tensors, on the weights that it was trained on, or not at all.

Faults are made in every tensor of an adapter of experts, of one with shared parts, and of LoRA; they are opened by this
package, by `PeftModel.from_pretrained` and by `load_adapter` under another name. Without `bound.json` an adapter is
what an older version, or PEFT itself, has saved.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.bound import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BOUND, LABELS
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import attach_adapter, load_adapter, load_backbone
from fftmoe.backbones.attach import logits
from fftmoe.backbones.lora import lora_config
from fftmoe.errors import InputError
from fftmoe.rng import generator
from fftmoe.store import SavedWith, save_adapter

Tensors = dict[str, Tensor]
KINDS = ("experts", "shared", "low-rank")
BATCH = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path) -> Callable[..., Any]:
    """Makes the frozen backbone; equal calls share no tensor."""
    made = load_backbone(str(backbone_folder), num_labels=3)
    return lambda: copy.deepcopy(made)


@pytest.fixture(scope="module")
def saved(backbone: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved adapter of each kind, none of whose tensors is 0."""
    folders = {}
    for kind in KINDS:
        bare = backbone()
        blocks = tuple(adapter.block_dims(bare, "last-2"))
        low_rank = lora_config(2, 1.0, target_names(bare, blocks, "query-value"))
        width, rank = (7, 2) if kind == "shared" else (0, 0)
        experts = MoeAdapterConfig(num_experts=5, expert_dim=3, blocks=list(blocks), shared_dim=width, shared_rank=rank)
        model = attach_adapter(bare, low_rank if kind == "low-rank" else experts)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator(3, name)) * 0.1)
        folders[kind] = tmp_path_factory.mktemp(kind) / "adapter"
        save_adapter(model, folders[kind], SavedWith(["a", "b", "c"]))
    return folders


OPEN: dict[str, Callable[[Any, Path], Any]] = {
    "by this package": load_adapter,
    "by PEFT": lambda bare, folder: PeftModel.from_pretrained(bare, str(folder)),
    "by PEFT under another name": lambda bare, folder: PeftModel.from_pretrained(bare, str(folder), adapter_name="x"),
    "by PEFT as a second adapter": lambda bare, folder: second(bare, folder),
    "by PEFT in little memory": lambda bare, folder: PeftModel.from_pretrained(
        bare, str(folder), low_cpu_mem_usage=True
    ),
}


def second(bare: Any, folder: Path) -> Any:
    model = attach_adapter(bare, MoeAdapterConfig(num_experts=5, expert_dim=3, blocks="last-2"))
    model.load_adapter(str(folder), "y")
    model.set_adapter("y")
    return model


def ways(kind: str) -> list[str]:
    """The ways that open this kind. PEFT's own class reads LoRA without asking this package, and only warns."""
    if kind == "low-rank":
        return ["by this package"]
    return list(OPEN)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in ways(kind)])
def test_a_whole_adapter_opens_to_equal_answers(
    saved: dict[str, Path], backbone: Callable[..., Any], kind: str, way: str
):
    expected = logits(load_adapter(backbone(), saved[kind]), BATCH)
    assert torch.equal(logits(OPEN[way](backbone(), saved[kind]).eval(), BATCH), expected)
    assert not torch.equal(logits(backbone(), BATCH), expected)


def without(folder: Path, to: Path, change: Callable[[Tensors], object], bound: bool) -> Path:
    """A copy of an adapter with changed tensors."""
    shutil.copytree(folder, to)
    tensors = load_file(to / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, to / ADAPTER_WEIGHTS, {"format": "pt"})
    if not bound:
        (to / BOUND).unlink()
    return to


def not_finite(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = float("nan")


FAULTS: dict[str, tuple[Callable[[Tensors, str], object], str]] = {
    "missing": (lambda tensors, name: tensors.pop(name), "is missing"),
    "renamed": (lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}), "is missing"),
    "another shape": (lambda tensors, name: tensors.update({name: tensors[name][:-1].clone()}), "shape|is F32|sizes"),
    "another type": (lambda tensors, name: tensors.update({name: tensors[name].int()}), "type|is I32"),
    "not finite": (not_finite, "not finite|have changed"),
}


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_of_an_adapter_can_be_taken_out_or_spoilt(
    saved: dict[str, Path], backbone: Callable[..., Any], tmp_path: Path, kind: str, bound: bool
):
    names = sorted(load_file(saved[kind] / ADAPTER_WEIGHTS))
    assert len(names) == {"experts": 8, "shared": 20, "low-rank": 10}[kind]
    count = 0
    for place, name in enumerate(names):
        for fault, (change, words) in FAULTS.items():
            way = ways(kind)[(place + len(fault)) % len(ways(kind))]
            folder = without(saved[kind], tmp_path / str(count), lambda t: change(t, name), bound)  # noqa: B023
            with pytest.raises((InputError, RuntimeError, KeyError)) as refused:
                OPEN[way](backbone(), folder)
            # PEFT itself refuses a head that lacks a tensor, and torch another shape, each in its own words.
            by_others = not bound and ("classifier" in name or fault == "another shape")
            assert by_others or re.search(words, str(refused.value)), (fault, way)
            assert isinstance(refused.value, InputError) or (by_others and way != "by this package")
            count += 1


@pytest.mark.parametrize("way", OPEN)
def test_an_adapter_without_any_tensor_or_with_one_too_many_is_refused(
    saved: dict[str, Path], backbone: Callable[..., Any], tmp_path: Path, way: str
):
    def one_more(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith("up"))
        tensors[name.replace("layer.1", "layer.0")] = tensors[name].clone()

    for number, change in enumerate((lambda tensors: tensors.clear(), one_more)):
        folder = without(saved["experts"], tmp_path / str(number), change, bound=True)
        with pytest.raises(InputError, match=r"is not as it was saved|sizes that no tensor"):
            OPEN[way](backbone(), folder)
    folder = without(saved["experts"], tmp_path / "older", one_more, bound=False)
    with pytest.raises(InputError, match="for which there is no place"):
        OPEN[way](backbone(), folder)


@pytest.mark.parametrize("way", OPEN)
def test_settings_and_labels_belong_to_the_adapter(
    saved: dict[str, Path], backbone: Callable[..., Any], tmp_path: Path, way: str
):
    for file, key, value, words in (
        ("adapter_config.json", "scale", 0.5, "adapter_config.json has changed"),
        ("adapter_config.json", "activation", "relu", "adapter_config.json has changed"),
        (LABELS, "labels", ["a", "c", "b"], "labels.json has changed"),
        (BOUND, "weights", "0", "values of its tensors have changed"),
        (BOUND, "format", 2, "format 1"),
    ):
        folder = Path(shutil.copytree(saved["experts"], tmp_path / f"{key}{value!s:.3}"))
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, key: value}))
        with pytest.raises(InputError, match=words):
            OPEN[way](backbone(), folder)
    folder = Path(shutil.copytree(saved["experts"], tmp_path / "top-k"))  # an export may choose it
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, "top_k": 1}))
    OPEN[way](backbone(), folder)


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in ways(kind)])
def test_an_adapter_is_not_put_on_other_weights_of_the_same_shape(
    saved: dict[str, Path], backbone: Callable[..., Any], kind: str, way: str
):
    """One bit of any tensor is enough. Converted weights cannot be compared, and pass."""
    names = [name for name, tensor in backbone().named_parameters() if not name.startswith("classifier")]
    for name in names[:: len(names) // 3]:
        other = backbone()
        with torch.no_grad():
            other.get_parameter(name).view(torch.int32).view(-1)[0] ^= 1
        with pytest.raises(InputError, match="trained on other weights"):
            OPEN[way](other, saved[kind])
    OPEN[way](backbone().to(torch.bfloat16), saved[kind])
    fresh_head = backbone()
    with torch.no_grad():
        fresh_head.classifier.weight.zero_()  # it comes with the adapter
    OPEN[way](fresh_head, saved[kind])


def test_an_adapter_that_peft_saves_again_is_bound_to_nothing_older(
    saved: dict[str, Path], backbone: Callable[..., Any], tmp_path: Path
):
    folder = Path(shutil.copytree(saved["experts"], tmp_path / "again"))
    model = PeftModel.from_pretrained(backbone(), str(folder), is_trainable=True)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    model.save_pretrained(str(folder))
    assert not (folder / BOUND).exists()
    PeftModel.from_pretrained(backbone(), str(folder))


def test_what_peft_keeps_as_a_set_is_saved_in_order(backbone: Callable[..., Any], tmp_path: Path):
    model = attach_adapter(backbone(), lora_config(2, 1.0, ["query", "value"]))
    names = {f"{letter}{ending}" for letter in "hgfedcba" for ending in ("query", "value")}
    model.peft_config["default"].target_modules = names  # type: ignore[attr-defined]
    save_adapter(model, tmp_path / "adapter", SavedWith(["a", "b", "c"]))
    assert json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())["target_modules"] == sorted(names)
