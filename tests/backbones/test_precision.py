"""Fewer bits and other devices: what is multiplied is smaller, what is trained, summed and sent is not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, find_device, find_precision, head_inputs, load_backbone, logits, place
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import WithPrefix
from fftmoe.errors import InputError
from fftmoe.evaluate import predict_logits
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.compose import compose
from fftmoe.setup.run import run
from fftmoe.store import unpack_state
from models import FAMILIES, token_examples

CPU = torch.device("cpu")
# A bfloat16 number has 8 bits: rounding one product is at most 2^-9 of it. Through three blocks of a few products each
# that stays below a few per cent of the largest number.
TOLERANCE = 0.05


def settings(recipe: dict[str, Any], **engine: Any) -> Recipe:
    return parse_recipe({**recipe, "engine": {**recipe["engine"], **engine}, "trackers": []}, "test")


@pytest.fixture
def models(backbone_folder: Path) -> tuple[Any, Any]:
    """The same adapted model in full precision and in half."""

    def make(dtype: torch.dtype) -> Any:
        backbone = load_backbone(str(backbone_folder), num_labels=3, fourier_features=11)
        config = MoeAdapterConfig(num_experts=5, expert_dim=8, top_k=2, blocks="last-2", shared_rank=2, shared_dim=3)
        return place(attach_adapter(backbone, config), CPU, dtype)

    return make(torch.float32), make(torch.bfloat16)


def test_half_the_bits_give_nearly_the_same_features_in_float32(models: tuple[Any, Any]):
    full, half = (head_inputs(model, token_examples(7, seed=1).batch(range(7))) for model in models)
    assert full.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.0, atol=TOLERANCE)
    assert not torch.equal(half, full)


def test_weights_stay_float32_and_get_float32_gradients(models: tuple[Any, Any]):
    _, half = models
    head_inputs(half, token_examples(7, seed=1).batch(range(7))).square().mul(3).sum().backward()
    trained = [p for p in half.parameters() if p.requires_grad]
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}
    assert any(p.grad is not None and p.grad.any() for p in adapter.shared_projections(half).values())


def test_a_run_in_bfloat16_learns_keeps_float32_and_evaluates_to_its_own_accuracy(
    recipe_values: dict[str, Any], tmp_path: Path
):
    result = run(settings(recipe_values, precision="bfloat16"), tmp_path / "run")
    state = unpack_state(max((tmp_path / "run" / "checkpoints").glob("*.safetensors")).read_bytes())
    assert {t.dtype for t in state.tensors.values()} == {torch.float32}
    assert result.summary["accuracy"] > 0.4  # of three labels
    assert evaluate_run(tmp_path / "run")["accuracy"] == pytest.approx(result.summary["accuracy"], abs=1.01 / 41)
    full = run(settings(recipe_values), tmp_path / "full").summary
    assert result.summary["bytes_up"] == pytest.approx(full["bytes_up"], rel=1e-3)


def test_the_frozen_prefix_takes_half_the_room(recipe_values: dict[str, Any]):
    sizes, answers = {}, {}
    for precision in ("float32", "bfloat16"):
        experiment = compose(settings(recipe_values, precision=precision))
        assert isinstance(experiment.train, WithPrefix)
        sizes[precision] = experiment.train.path.stat().st_size
        answers[precision] = predict_logits(experiment.model, experiment.train)
        assert experiment.train.select([3, 1]).batch([0])["prefix_states"].dtype == getattr(torch, precision)
    assert sizes["bfloat16"] * 2 == sizes["float32"]
    torch.testing.assert_close(answers["bfloat16"], answers["float32"], rtol=0.0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("able", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_auto_asks_the_processor(able: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert find_precision("auto", CPU) == dtype
    assert find_precision("float32", CPU) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(recipe_values: dict[str, Any], tmp_path: Path):
    with pytest.raises(
        InputError, match=r"engine\.device=cuda, but torch finds no CUDA GPU on this machine; set it to auto"
    ):
        run(settings(recipe_values, device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert find_device("auto") == CPU


# What transformers has for these families cannot be replaced by attention in float32.
OWN_ATTENTION = {"bloom": "eager", "deberta-v2": "eager", "falcon": "sdpa", "gemma2": "eager", "mpnet": "eager"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_in_half_the_bits(family: str):
    """Its attention in float32 on a CPU, with the family's own masks."""
    tiny = FAMILIES[family]
    full, half = (place(tiny.make(), CPU, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.config._attn_implementation == OWN_ATTENTION.get(family, "sdpa_float32")
    expected = logits(full, tiny.batch())
    torch.testing.assert_close(logits(half, tiny.batch()), expected, rtol=0.0, atol=TOLERANCE)
    assert expected.dtype == torch.float32
