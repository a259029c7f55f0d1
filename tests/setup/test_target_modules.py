"""A backbone of a family that is not known is adapted where the recipe says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.asked import predict_run
from fftmoe.setup.run import run
from site_recipes import changed


@pytest.fixture(scope="module")
def stablelm(backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny StableLM, whose blocks are built as Llama's and whose family is not in the table."""
    folder = tmp_path_factory.mktemp("stablelm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone_folder)
    config = transformers.StableLmConfig(
        vocab_size=len(tokenizer),
        hidden_size=20,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=37,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.StableLmModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_runs_and_answers(recipe_values: dict[str, Any], stablelm: Path, tmp_path: Path):
    changes = {
        "backbone": {"model": str(stablelm)},
        "adapter": {"target_modules": ["mlp"], "shared_rank": 2},
        "evaluation": {"baselines": "off", "local_only": False},
    }
    result = run(parse_recipe(changed(recipe_values, changes), "test"), tmp_path / "run")
    assert result.summary["rounds_completed"] == 2
    assert [len(answer) > 0 for answer in predict_run(tmp_path / "run", ["ash", "bay"])] == [True, True]


def test_without_names_the_message_suggests_some(recipe_values: dict[str, Any], stablelm: Path, tmp_path: Path):
    recipe = parse_recipe(changed(recipe_values, {"backbone": {"model": str(stablelm)}}), "test")
    with pytest.raises(InputError, match=r"'stablelm' is not a model family .* Candidates in this model: .*mlp"):
        run(recipe, tmp_path / "run")
