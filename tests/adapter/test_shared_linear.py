"""The shared update of all linear layers of a block, those within the feed-forward network among them.

What it has in common with that of query and value is tested there (test_shared_attention.py), and which clients hold,
send and average it in test_shared_in_rounds.py.
Sizes: R its rank, M experts of H hidden units; HIDDEN is the tiny models' dim.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import fftmoe
from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.low_rank import target_names
from fftmoe.adapter.shared_update import SHARED_SCALE, LowRank, SharedProjection
from fftmoe.backbones import attach_adapter, enable_resume, logits, prefix_states
from fftmoe.backbones.lora import load_factors, lora_config
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.exports.check import probes
from fftmoe.exports.fit import bare, owner
from fftmoe.exports.load import fresh_backbone
from fftmoe.rng import generator
from fftmoe.setup.finished import load_run
from fftmoe.setup.method import expert_shape
from fftmoe.setup.model import build_model
from fftmoe.store import Bindings, SavedWith, save_adapter
from models import FAMILIES, HIDDEN, NUM_BLOCKS, tiny_bert, tokens
from shared_fixtures import Cli
from shared_updates import R, config, output, randomise, trainable

# peft 0.21 reads an attribute that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BERT = ("attention.output.dense", "intermediate.dense", "key", "output.dense", "query", "value")
DECODER = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def all_linear(**changes: Any) -> MoeAdapterConfig:
    return config(**{"shared_targets": "all-linear", **changes})


def prefixes(model: nn.Module, block: int) -> tuple[str, ...]:
    wanted = f"shared.{block}."
    return tuple(name.removeprefix(wanted) for name in adapter.low_ranks(model) if name.startswith(wanted))


# Which layers, and what they are called


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", BERT),
        ("distilbert", ("k_lin", "lin1", "lin2", "out_lin", "q_lin", "v_lin")),
        ("vit", ("fc1", "fc2", "k_proj", "o_proj", "q_proj", "v_proj")),
        ("llama", DECODER),
        ("qwen3", DECODER),
    ],
)
def test_a_layer_is_called_by_its_last_name_or_its_path_where_that_is_another_ones_too(family: str, names: Any):
    model = attach_adapter(FAMILIES[family].make(), all_linear(blocks=[0, 2]))
    assert [prefixes(model, block) for block in range(NUM_BLOCKS)] == [names, (), names]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_they_are_those_that_lora_adapts(family: str):
    backbone = FAMILIES[family].make()
    wanted = target_names(backbone, range(NUM_BLOCKS), "all-linear")
    model = attach_adapter(backbone, all_linear())
    wrapped = {bare(name) for name, module in model.named_modules() if isinstance(module, SharedProjection)}
    assert wrapped == set(wanted)


def test_query_and_value_have_the_same_names_and_first_values_without_the_other_layers():
    both, attention_only = (
        attach_adapter(tiny_bert(), all_linear()),
        attach_adapter(tiny_bert(), all_linear(shared_targets="query-value")),
    )
    everything = adapter.shared_projections(both)
    for name, parameter in adapter.shared_projections(attention_only).items():
        assert torch.equal(everything[name], parameter)


def test_a_feed_forward_network_that_is_one_linear_layer_gets_only_experts():
    model = attach_adapter(tiny_bert(), all_linear(target_modules=r".*layer\.\d+\.attention\.output\.dense"))
    assert list(adapter.blocks(model)) == [0, 1, 2]
    assert "attention.output.dense" not in prefixes(model, 1)
    assert len(prefixes(model, 1)) == 5


def test_a_misspelt_choice_of_layers_is_refused_with_the_remedy():
    with pytest.raises(InputError, match="unknown shared_targets 'all-linea'; did you mean 'all-linear'"):
        all_linear(shared_targets="all-linea")


# What it computes


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_untrained_it_is_exactly_the_backbone_and_every_layer_has_an_effect(family: str):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, all_linear())
    assert torch.equal(output(model, batch), plain)
    for prefix, low_rank in adapter.low_ranks(model).items():
        nn.init.normal_(low_rank.low_b, generator=generator(1, prefix))
        assert not torch.equal(output(model, batch), plain), prefix
        nn.init.zeros_(low_rank.low_b)
    assert torch.equal(output(model, batch), plain)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # of PEFT, for GPT-2
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_experts_it_is_pefts_lora_with_gradients(family: str):
    batch = FAMILIES[family].batch()
    ours = attach_adapter(FAMILIES[family].make(), all_linear())
    randomise(ours, experts=False)
    backbone = FAMILIES[family].make()
    lora = attach_adapter(
        backbone, lora_config(R, SHARED_SCALE, target_names(backbone, range(NUM_BLOCKS), "all-linear"))
    )
    low_ranks = {owner(name): module for name, module in ours.named_modules() if isinstance(module, LowRank)}
    theirs = load_factors(lora, {path: (m.low_a, m.low_b) for path, m in low_ranks.items()})
    found, expected = logits(ours, batch), logits(lora, batch)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for path, low_rank in low_ranks.items():
        for mine, other in zip((low_rank.low_a, low_rank.low_b), theirs[path], strict=True):
            assert mine.grad is not None
            # Both sum over the same tokens in their own order.
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4, msg=path)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_resuming_after_the_frozen_prefix_is_the_whole_model(family: str):
    model, batch = attach_adapter(FAMILIES[family].make(), all_linear(blocks="last-2")), FAMILIES[family].batch()
    randomise(model)
    whole, states = logits(model, batch), prefix_states(model, 1, batch)
    enable_resume(model, 1)
    assert torch.equal(logits(model, {**batch, "prefix_states": states}), whole)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parameters_are_counted_before_and_after_attaching(family: str):
    backbone = FAMILIES[family].make()
    forecast = {block: adapter.projection_parameters(backbone, block, R, "all-linear") for block in range(NUM_BLOCKS)}
    model = attach_adapter(backbone, all_linear())
    for block, expected in forecast.items():
        own = [p for name, p in adapter.shared_projections(model).items() if name.startswith(f"shared.{block}.")]
        assert sum(p.numel() for p in own) == expected > 0
        assert adapter.projection_parameters(model.get_base_model(), block, R, "all-linear") == expected
    # Of these: four projections of attention and two of the feed-forward network, from 20 to 24 and back.
    if family in ("bert", "distilbert", "vit"):
        assert forecast[1] == R * (4 * 2 * HIDDEN + 2 * (HIDDEN + 24))


# As peft's adapter


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_saved_by_peft_it_loads_bit_for_bit_and_unloads_to_the_backbone(family: str, tmp_path: Path):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    plain, modules = output(backbone, batch), [name for name, _ in backbone.named_modules()]
    model = get_peft_model(backbone, all_linear(blocks="last-2"), adapter_name="mine").eval()
    randomise(model)
    expected = output(model, batch)
    with model.disable_adapter():
        assert torch.equal(output(model, batch), plain)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(FAMILIES[family].make(), str(tmp_path / "mine")).eval()
    assert torch.equal(output(loaded, batch), expected)
    assert adapter.shared_projections(loaded).keys() == adapter.shared_projections(model).keys()
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_and_unload()
    dropped = model.unload()
    assert [name for name, _ in dropped.named_modules()] == modules
    assert torch.equal(output(dropped, batch), plain)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"shared_rank": 3, "blocks": "last-1"}),
        ({"shared_rank": 0}, {}),
        ({"shared_targets": "query-value"}, {}),
        ({}, {"shared_targets": "query-value"}),
        ({"blocks": "last-1"}, {"blocks": [0, 2]}),
    ],
    ids=str,
)
def test_a_second_adapter_may_adapt_other_layers(first: dict[str, Any], second: dict[str, Any]):
    backbone, batch = tiny_bert(), tokens()
    plain, modules = output(backbone, batch), [name for name, _ in backbone.named_modules()]
    model = attach_adapter(backbone, all_linear(seed=1, **first))
    randomise(model)
    one, trained, names = output(model, batch), trainable(model), list(adapter.shared_projections(model))
    model.add_adapter("second", all_linear(seed=2, modules_to_save=["classifier"], **second))
    assert torch.equal(output(model, batch), one)
    assert trainable(model) == trained
    model.set_adapter("second")
    assert torch.equal(output(model, batch), plain)
    single = attach_adapter(tiny_bert(), all_linear(seed=2, **second))
    assert list(adapter.shared_projections(model)) == list(adapter.shared_projections(single))
    assert all(".second." in name for name in trainable(model))
    for each in (model, single):
        randomise(each)
    assert torch.equal(output(model, batch), output(single, batch))
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(output(model, batch), one)
    assert list(adapter.shared_projections(model)) == names
    assert [name for name, _ in model.unload().named_modules()] == modules


# A recipe, its run and its exports


def test_a_recipes_shape_is_what_its_model_holds(recipe_values: dict[str, Any]):
    changed = {**recipe_values["adapter"], "shared_rank": 3, "shared_targets": "all-linear"}
    recipe = parse_recipe({**recipe_values, "adapter": changed}, "tiny")
    model = build_model(recipe, ("blue", "green", "red"))
    shape = expert_shape(recipe, model.get_base_model())
    for block, moe in adapter.blocks(model).items():
        own = [p for name, p in adapter.shared_projections(model).items() if name.startswith(f"shared.{block}.")]
        assert sum(p.numel() for p in (*moe.parameters(), *own)) == shape.block_parameters(5)
    # LoRA's rank is chosen by the same cost, of a model that has LoRA's own linear layers in it.
    for targets in ("query-value", "all-linear"):
        lora = parse_recipe(
            {**recipe_values, "adapter": changed, "method": "fedit", "lora": {"targets": targets}}, "tiny"
        )
        assert expert_shape(lora, build_model(lora, ("blue", "green", "red"))) == shape


@pytest.fixture(scope="module")
def run(cli: Cli, recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose clients train side by side, the smaller in one block of two."""
    folder, (small, large) = tmp_path_factory.mktemp("linear"), recipe_values["budgets"]
    values = {
        **recipe_values,
        "adapter": {**recipe_values["adapter"], "shared_rank": 3, "shared_targets": "all-linear", "shared_dim": 2},
        "budgets": [{**small, "blocks": "last-1"}, large],
        "federation": {**recipe_values["federation"], "learning_rate": 0.1},
        "trackers": [],
        "evaluation": {"baselines": "off"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert cli("run", folder / "tiny.yaml", "--output", folder / "run").status == 0
    return folder / "run"


def answers(model: Any, run: Path) -> list[Tensor]:
    return [output(model, batch) for batch in probes(load_run(run, exact=True))]


@pytest.mark.parametrize("options", [{"to": "peft"}, {"to": "personal", "client": 0}], ids=str)
def test_a_run_is_exported_exactly(run: Path, tmp_path: Path, options: dict[str, Any]):
    about = fftmoe.export(run, options.pop("to"), tmp_path / "out", **options)
    assert about["max_difference"] == 0.0
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (saved["shared_rank"], saved["shared_targets"]) == (3, "all-linear")


def test_the_imitation_by_lora_takes_in_the_last_projections_update(run: Path, tmp_path: Path):
    """If no expert adds anything, the imitation equals the model up to the shrinkage of the ridge."""
    trained = load_run(run, exact=True)
    with torch.no_grad():
        for moe in adapter.blocks(trained.model).values():
            assert moe.shared_down is not None
            moe.down.zero_()
            moe.shared_down.zero_()
    last = [p for name, p in adapter.shared_projections(trained.model).items() if name.endswith(".output.dense.b")]
    assert any(parameter.any() for parameter in last)
    silent = shutil.copytree(run, tmp_path / "run")
    save_adapter(trained.model, silent / "adapter", SavedWith(trained.run.label_names))
    bindings = Bindings.read(silent)
    assert bindings is not None
    bindings.with_adapters(silent, ["adapter"]).write(silent)  # as if the run had saved it
    expected = answers(trained.model, run)
    about = fftmoe.export(silent, "lora", tmp_path / "out", rank=3, steps=0)
    assert all(0 < error < 1e-3 for error in about["relative_error"].values())
    lora = fresh_backbone(trained.run).eval()
    lora.backbone = PeftModel.from_pretrained(lora.backbone, str(tmp_path / "out")).eval()
    lora.classifier.load_state_dict(load_file(tmp_path / "out" / "classifier.safetensors"))
    of_backbone = answers(fresh_backbone(trained.run), run)
    for found, wanted, without in zip(answers(lora, run), expected, of_backbone, strict=True):
        assert (found - wanted).norm() < 0.02 * (without - wanted).norm()
