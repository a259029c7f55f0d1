"""Whole runs on pictures with a tiny ViT."""

from typing import Any

import pytest
import yaml

from fftmoe.backbones import load_adapter, load_backbone
from fftmoe.config import parse_recipe
from fftmoe.data import WithPrefix
from fftmoe.evaluate import accuracy
from fftmoe.setup.load import load_examples
from five_clients import AVERAGED, CLOSED, FOURIER, PERSONAL
from models import HIDDEN
from pictures import COLOURS, vision_values
from run_fixtures import ComposeFive, RunFive


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sections of a recipe: a tiny ViT and pictures whose colours are easy to distinguish."""
    return vision_values(tmp_path_factory.mktemp("images"), noise=80, signal=120)


@pytest.mark.parametrize(
    ("method", "head"), [("fft-moe", CLOSED), ("fft-moe", AVERAGED), ("flexlora", FOURIER), ("local-only", AVERAGED)]
)
def test_images_go_the_whole_way(run_five: RunFive, images: dict[str, Any], method: str, head: dict[str, Any]):
    finished = run_five(method, head, **images)
    summary = finished.summary
    assert summary["rounds_completed"] == 2
    assert 0 <= summary["accuracy"] <= 1
    if head != AVERAGED:
        assert summary["accuracy"] > 0.8  # colours are easy to distinguish, once the head is computed
    if method not in PERSONAL:
        lifted = head.get("num_features", 0)
        task = "image-classification"
        backbone = load_backbone(images["backbone"]["model"], task=task, num_labels=3, fourier_features=lifted)
        model = load_adapter(backbone, finished.folder / "adapter")
        data = load_examples(parse_recipe(yaml.safe_load((finished.folder / "config.yaml").read_text()), "config.yaml"))
        assert data.label_names == COLOURS
        assert len(data.test) == 23
        assert accuracy(model, data.test) == summary["accuracy"]
        assert (summary["labels"]["name"], sum(summary["labels"]["actual"])) == (list(COLOURS), 23)
        assert sum(summary["labels"]["hits"]) == pytest.approx(23 * summary["accuracy"])
    else:  # there is no model of which all labels could be counted
        assert "labels" not in summary


def test_images_are_cached_below_the_adapter_too(compose_five: ComposeFive, images: dict[str, Any]):
    experiment = compose_five("fft-moe", **images)
    assert isinstance(experiment.train, WithPrefix)
    # 8 x 8 pixels in patches of 4 x 4, and one token of the model's own.
    assert set(experiment.train.num_states.tolist()) == {2 * 2 + 1}


def test_all_blocks_of_an_image_model_can_be_adapted(run_five: RunFive, images: dict[str, Any]):
    adapter = {"num_experts": 5, "expert_dim": 4, "blocks": "all"}
    finished = run_five("fft-moe", AVERAGED, adapter=adapter, **images)
    assert {name for name in finished.state.tensors if name.endswith(".up")} == {f"blocks.{b}.up" for b in range(3)}


def test_a_limit_on_compute_counts_an_images_patches(compose_five: ComposeFive, images: dict[str, Any]):
    # Two steps of five images of five states; a block's router takes 600 FLOPs, an expert 960 of three passes.
    tokens, router, expert = 2 * 5 * 5, 3 * 2 * 5 * HIDDEN, 3 * 4 * 4 * HIDDEN
    shared = 3 * 2 * 4 * HIDDEN
    for top_k in (1, 3):
        gflops = tokens * 2 * (router + shared + (top_k + 0.5) * expert) / 1e9
        budgets = [{"name": "only", "fraction": 1.0, "experts": 5, "gflops": gflops}]
        (tier,) = compose_five("fft-moe", budgets=budgets, **images).tiers
        assert tier.top_k == top_k
