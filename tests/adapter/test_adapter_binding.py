"""Each difference between an adapter, or the weights below it, and its `bound.json` is told from every other one."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from fftmoe.adapter.bound import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BOUND,
    LABELS,
    base_tensors,
    check_adapter_files,
    check_base,
    check_tensors,
    describe_adapter,
    describe_base,
)
from fftmoe.errors import InputError

TENSORS = {"a.up": torch.ones(2, 3), "b.down": torch.ones(4)}


class Below(nn.Module):
    """Frozen weights of two types, whose numbers are not those of any 16 bits, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("places", torch.arange(5))
        self.classifier = nn.Linear(2, 2)


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    write_json(folder / ADAPTER_CONFIG, {"scale": 1.0, "top_k": 2})
    write_json(folder / LABELS, {"labels": ["no", "yes"]})
    save_file(TENSORS, folder / ADAPTER_WEIGHTS)
    write_json(folder / BOUND, describe_adapter(folder, Below()))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def changed(file: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / file, {**json.loads((folder / file).read_text()), **values})


def with_tensors(**tensors: Tensor) -> Callable[[Path], None]:
    named = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    return lambda folder: save_file(named, folder / ADAPTER_WEIGHTS)


def test_an_adapter_is_what_it_was_saved_as(folder: Path):
    assert check_adapter_files(folder) == describe_base(Below())
    changed(ADAPTER_CONFIG, top_k=1)(folder)  # an export may choose it
    assert check_adapter_files(folder) == describe_base(Below())
    (folder / BOUND).unlink()
    changed(ADAPTER_CONFIG, scale=2.0)(folder)
    assert check_adapter_files(folder) is None


def test_an_adapter_may_have_no_labels(folder: Path):
    (folder / LABELS).unlink()
    write_json(folder / BOUND, describe_adapter(folder, Below()))
    assert check_adapter_files(folder)
    write_json(folder / LABELS, {"labels": ["no", "yes"]})
    with pytest.raises(InputError, match=r"its labels\.json has changed"):
        check_adapter_files(folder)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (with_tensors(b_down=torch.ones(4)), r"its tensor a\.up is missing"),
    "shape": (
        with_tensors(a_up=torch.ones(3, 2), b_down=torch.ones(4)),
        r"its tensor a\.up is F32 \[3, 2\] and was F32 \[2, 3\]",
    ),
    "type": (
        with_tensors(a_up=torch.ones(2, 3), b_down=torch.ones(4).half()),
        r"its tensor b\.down is F16 \[4\] and was F32 \[4\]",
    ),
    "extra": (
        with_tensors(a_up=torch.ones(2, 3), b_down=torch.ones(4), c=torch.ones(1)),
        "it has a tensor c that it had not",
    ),
    "values": (with_tensors(a_up=torch.ones(2, 3), b_down=torch.zeros(4)), "the values of its tensors have changed"),
    "settings": (changed(ADAPTER_CONFIG, scale=0.5), r"its adapter_config\.json has changed"),
    "labels": (changed(LABELS, labels=["yes", "no"]), r"its labels\.json has changed"),
    "no labels": (lambda folder: (folder / LABELS).unlink(), r"its labels\.json has changed"),
    "no weights": (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "one of the files that it names cannot be read"),
    "format": (changed(BOUND, format=2), "it has not the form of format 1"),
    "base": (changed(BOUND, base=[]), "it has not the form of format 1"),
    "tensors": (changed(BOUND, tensors=[]), "it has not the form of format 1"),
    "no JSON": (lambda folder: (folder / BOUND).write_text("{"), r"its bound\.json or one of .* cannot be read"),
    "no weights below": (lambda folder: write_json(folder / BOUND, {"format": 1}), "cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_difference_is_named(folder: Path, fault: str):
    change, words = FAULTS[fault]
    change(folder)
    with pytest.raises(InputError, match=f"is not as it was saved: .*{words}.*; restore its files"):
        check_adapter_files(folder)


def converted(dtype: torch.dtype, moved: float = 0.0) -> Below:
    """The weights with one number moved, and then converted."""
    model = Below()
    with torch.no_grad():
        model.first[1] += moved
    return model.to(dtype)


def rounded_then_widened(moved: float = 0.0) -> Below:
    return converted(torch.bfloat16, moved).to(torch.float32)


FULL, HALF = describe_base(Below()), describe_base(converted(torch.bfloat16))
OLDER = {name: value for name, value in FULL.items() if name != "stored"}


@pytest.mark.parametrize(
    ("base", "model"),
    [
        (FULL, Below()),
        (FULL, converted(torch.float64)),  # other types cannot be compared
        (FULL, converted(torch.bfloat16)),  # rounded since
        (FULL, converted(torch.float16, 0.5)),
        (OLDER, converted(torch.bfloat16)),
        (FULL, Below().to("meta")),
        (HALF, converted(torch.bfloat16)),
        (HALF, rounded_then_widened()),
        (HALF, converted(torch.float16)),
    ],
)
def test_weights_that_are_equal_or_cannot_be_compared_pass(base: dict[str, Any], model: Below):
    check_base(base, model, "here")


@pytest.mark.parametrize(
    ("base", "model"),
    [
        (FULL, converted(torch.float32, 0.5)),
        (OLDER, converted(torch.float32, 0.5)),
        (FULL, rounded_then_widened()),
        (HALF, converted(torch.bfloat16, 0.5)),
        (HALF, rounded_then_widened(0.5)),
        ({**FULL, "weights": None}, Below()),
    ],
)
def test_other_weights_are_refused(base: dict[str, Any], model: Below):
    with pytest.raises(InputError, match="the adapter in here was trained on other weights"):
        check_base(base, model, "here")


def test_the_types_are_those_of_the_frozen_weights_before_and_after_widening():
    assert FULL["types"] == FULL["stored"] == ["torch.float32", "torch.int64"]
    assert HALF["types"] == FULL["types"]
    assert HALF["stored"] == ["torch.bfloat16", "torch.int64"]
    assert describe_base(converted(torch.float16))["types"] == FULL["types"]
    assert describe_base(converted(torch.float64))["types"] == ["torch.float64", "torch.int64"]


class Tuned(nn.Module, BaseTunerLayer):
    """A layer with an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.own = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def test_the_base_is_what_was_there_before_adapters_and_heads():
    model: Any = nn.Module()
    value = Tuned()
    model.block = nn.ModuleDict({"query": Tuned(), "query2": nn.Linear(2, 2, bias=False), "value": value})
    model.classifier = nn.Linear(2, 2)
    found = base_tensors(model, ("classifier", "score"))
    assert sorted(found) == ["block.query.weight", "block.query2.weight", "block.value.weight"]
    assert torch.equal(found["block.value.weight"], value.base_layer.weight)
    assert sorted(base_tensors(model, ())) == sorted([*found, "classifier.bias", "classifier.weight"])
    wrapped: Any = nn.Module()
    wrapped.get_base_model = lambda: model
    assert sorted(base_tensors(wrapped, ("classifier",))) == sorted(found)


NEEDED = {"a": torch.ones(2, 3), "b": torch.ones(2), "n": torch.arange(3)}


def needed(**tensors: Tensor) -> dict[str, Tensor]:
    return {**copy.deepcopy(NEEDED), **tensors}


def test_tensors_that_an_adapter_needs_pass():
    check_tensors(needed(), NEEDED, "it")
    check_tensors(needed(a=torch.ones(2, 3).half(), n=torch.arange(3).int()), NEEDED, "it")
    check_tensors(needed(a=torch.ones(2, 3, device="meta")), NEEDED, "it")  # not loaded yet


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"n": NEEDED["n"]}, r"the tensor a is missing \(2 of 3 are\)"),
        (needed(z=torch.ones(1), y=torch.ones(1)), "it has a tensor y, for which there is no place"),
        (needed(a=torch.ones(3, 2)), r"the tensor a has the shape \[3, 2\], and \[2, 3\] is needed"),
        (needed(n=torch.ones(3)), r"the tensor n has the type torch\.float32, and torch\.int64 is needed"),
        (needed(b=torch.tensor([1.0, torch.inf])), "the tensor b has values that are not finite"),
        (
            needed(a=torch.ones(1), b=torch.ones(1)),
            r"the tensor a has the shape \[1\], and \[2, 3\] is needed",
        ),  # the first of two
        ({"z": torch.ones(1), "a": torch.ones(1)}, r"the tensor b is missing \(2 of 3 are\)"),
    ],
)
def test_other_tensors_are_refused(found: dict[str, Tensor], words: str):
    with pytest.raises(InputError, match=f"it cannot be loaded: {words}; it is damaged"):
        check_tensors(found, NEEDED, "it")
