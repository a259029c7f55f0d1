"""The low-rank update of query and value that is averaged: a whole model with it, its files and its switches.

test_shared_projection.py tests one projection, test_shared_in_rounds.py which clients hold, send and average it, and
methods/test_shared_costs.py what it costs. R is its rank, M the number of experts of H hidden units.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from federation import examples, plan_client
from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.shared_update import SharedProjection
from fftmoe.backbones import (
    attach_adapter,
    enable_resume,
    first_adapted_block,
    load_backbone,
    logits,
    prefix_states,
)
from fftmoe.errors import InputError
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.local_only import LocalOnly
from fftmoe.records import (
    ClientPlan,
    ServerState,
)
from fftmoe.rng import generator
from models import FAMILIES, HIDDEN, NUM_BLOCKS, tiny_bert, tokens
from shared_updates import (
    BLOCKS,
    BUDGETS,
    LARGE,
    NARROW,
    TRAINING,
    H,
    M,
    R,
    T,
    config,
    every_family,
    of_block,
    output,
    randomise,
    trainable,
)

# peft 0.21 reads an attribute that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROJECTIONS = 2 * R * (HIDDEN + HIDDEN)  # query and value of a block of the tiny BERT
SHAPE = ExpertShape(HIDDEN, H, projections=PROJECTIONS)
NAMES = {f"shared.{block}.{name}.{part}" for block in BLOCKS for name in ("query", "value") for part in "ab"}


@every_family
def test_an_untrained_adapter_with_it_is_exactly_the_backbone(family: str):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, config())
    projections = adapter.shared_projections(model)
    assert len(projections) == NUM_BLOCKS * 2 * 2
    assert torch.equal(output(model, batch), plain)
    assert all((p != 0).all() for name, p in projections.items() if name.endswith(".a"))
    # Each projection of each block has a separate effect.
    for name, parameter in projections.items():
        if name.endswith(".b"):
            nn.init.normal_(parameter, generator=generator(1, name))
            assert not torch.equal(output(model, batch), plain), name
            nn.init.zeros_(parameter)
    assert torch.equal(output(model, batch), plain)


def test_names_on_the_wire_are_the_block_and_what_the_family_calls_the_projection():
    expected = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "qwen3": ("q_proj", "v_proj")}
    for family, names in expected.items():
        model = attach_adapter(FAMILIES[family].make(), config(blocks=[2, 0]))
        wire = [f"shared.{block}.{name}.{part}" for block in (0, 2) for name in names for part in "ab"]
        assert list(adapter.shared_projections(model)) == wire
    assert adapter.shared_projections(attach_adapter(tiny_bert(), config(shared_rank=0))) == {}


@every_family
def test_a_training_step_changes_only_it_the_experts_and_the_head(family: str):
    model = attach_adapter(FAMILIES[family].make(), config())
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    nn.functional.cross_entropy(logits(model, FAMILIES[family].batch()), torch.tensor([0, 2])).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(any(f".{part}." in n for part in ("moe_experts", "moe_shared", "modules_to_save")) for n in changed)
    for part in ("low_a", "low_b"):
        assert sum(name.endswith(f".moe_shared.default.{part}") for name in changed) == 2 * NUM_BLOCKS


def test_fused_projections_are_refused_with_the_remedy():
    remedy = "no separate query and value .*; set shared_rank to 0, and shared_dim for a shared expert instead"
    with pytest.raises(InputError, match=rf"blocks \[0, 1, 2\] of this model have {remedy}"):
        attach_adapter(FAMILIES["gpt2"].make(), config())
    with pytest.raises(InputError, match=rf"blocks \[1\] .*{remedy}"):
        attach_adapter(FAMILIES["gpt2"].make(), config(blocks=[1]))
    with pytest.raises(InputError, match=remedy):
        adapter.projection_parameters(FAMILIES["gpt2"].make(), 1, R)
    # The remedy is one.
    model = attach_adapter(FAMILIES["gpt2"].make(), config(shared_rank=0, shared_dim=2))
    assert list(adapter.blocks(model)) == [0, 1, 2]
    assert adapter.projection_parameters(FAMILIES["gpt2"].make(), 1, 0) == 0


def test_a_block_with_only_one_of_the_two_is_refused():
    backbone = tiny_bert()
    attention = backbone.get_submodule("bert.encoder.layer.1.attention.self")
    attention.value = nn.Identity()
    with pytest.raises(InputError, match=r"blocks \[1\] of this model have no separate query and value"):
        attach_adapter(backbone, config())


def test_a_negative_rank_is_refused():
    with pytest.raises(InputError, match="shared_rank=-1 must be at least 0"):
        config(shared_rank=-1)


def test_without_it_the_adapter_is_unchanged():
    none = attach_adapter(tiny_bert(), MoeAdapterConfig(num_experts=M, expert_dim=H, top_k=2))
    zero, with_it = attach_adapter(tiny_bert(), config(shared_rank=0)), attach_adapter(tiny_bert(), config())
    assert list(none.state_dict()) == list(zero.state_dict())
    assert [name for name, _ in none.named_modules()] == [name for name, _ in zero.named_modules()]
    moes = [adapter.blocks(model) for model in (none, zero, with_it)]
    for block, moe in moes[0].items():
        for other in moes[1:]:
            for name, value in moe.state_dict().items():
                assert torch.equal(value, other[block].state_dict()[name])


@pytest.mark.parametrize("blocks", ["all", "last-1"])
def test_the_first_a_depends_only_on_the_seed(blocks: str):
    """Whatever the process drew before, and whichever other blocks are adapted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() % 1000 + 1)
        torch.rand(17)
        model = attach_adapter(tiny_bert(), config(seed=23, blocks=blocks))
    projections = adapter.shared_projections(model)
    for name in ("query", "value"):
        uniform = torch.rand(R, HIDDEN, generator=generator(23, "shared", 2, name))
        a = projections[f"shared.2.{name}.a"]
        torch.testing.assert_close(a.detach(), (2 * uniform - 1) / HIDDEN**0.5)
        assert a.abs().max() <= HIDDEN**-0.5
        assert not projections[f"shared.2.{name}.b"].any()
    assert not torch.equal(projections["shared.2.query.a"], projections["shared.2.value.a"])
    again = attach_adapter(tiny_bert(), config(seed=23))
    assert torch.equal(adapter.shared_projections(again)["shared.2.query.a"], projections["shared.2.query.a"])
    other = attach_adapter(tiny_bert(), config(seed=29))
    assert not torch.equal(adapter.shared_projections(other)["shared.2.query.a"], projections["shared.2.query.a"])


@every_family
def test_saved_by_peft_it_loads_bit_for_bit_and_can_be_switched_off(family: str, tmp_path: Path):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    plain = output(backbone, batch)
    model = get_peft_model(backbone, config(blocks="last-2"), adapter_name="mine").eval()
    randomise(model)
    expected = output(model, batch)
    assert not torch.equal(expected, plain)
    with model.disable_adapter():
        assert torch.equal(output(model, batch), plain)
    assert torch.equal(output(model, batch), expected)
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    assert not any(".mine" in name or ".default" in name for name in saved)
    assert sum(".moe_shared.low_" in name for name in saved) == 2 * 2 * 2
    loaded = PeftModel.from_pretrained(FAMILIES[family].make(), str(tmp_path / "mine")).eval()
    assert torch.equal(output(loaded, batch), expected)
    for name, parameter in adapter.shared_projections(model).items():
        assert torch.equal(adapter.shared_projections(loaded)[name], parameter)
    assert getattr(loaded.peft_config["default"], "shared_rank", None) == R


def test_unload_gives_back_the_backbone_and_merge_says_why_it_cannot():
    batch, backbone = tokens(), tiny_bert()
    plain, modules = output(backbone, batch), [name for name, _ in backbone.named_modules()]
    model = get_peft_model(backbone, config())
    randomise(model, experts=False)
    assert not torch.equal(output(model, batch), plain)
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_adapter()
    dropped = model.unload()
    assert torch.equal(output(dropped, batch), plain)
    assert [name for name, _ in dropped.named_modules()] == modules


def test_several_adapters_can_be_switched_and_dropped():
    batch, backbone = tokens(), tiny_bert()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, config(seed=1))
    randomise(model)
    first, trained, names = output(model, batch), trainable(model), list(adapter.shared_projections(model))
    model.add_adapter("second", config(seed=2, shared_rank=3, blocks="last-1", modules_to_save=["classifier"]))
    assert torch.equal(output(model, batch), first)
    assert trainable(model) == trained
    model.set_adapter("second")
    assert torch.equal(output(model, batch), plain)
    projections = adapter.shared_projections(model)
    assert list(projections) == [f"shared.2.{name}.{part}" for name in ("query", "value") for part in "ab"]
    assert {p.shape for p in projections.values()} == {(3, HIDDEN), (HIDDEN, 3)}
    assert all(".second." in name for name in trainable(model))
    assert sum(".moe_shared.second." in name for name in trainable(model)) == 4
    randomise(model)
    second = output(model, batch)
    assert not torch.equal(second, plain)
    model.set_adapter("default")
    assert torch.equal(output(model, batch), first)
    assert trainable(model) == trained
    model.set_adapter("second")
    assert torch.equal(output(model, batch), second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(output(model, batch), first)
    assert list(adapter.shared_projections(model)) == names


def test_a_second_adapter_is_loaded_next_to_the_first(tmp_path: Path):
    batch, one, two = tokens(), attach_adapter(tiny_bert(), config(seed=1)), attach_adapter(tiny_bert(), config(seed=2))
    for model, factor in ((one, 1.0), (two, 3.0)):
        randomise(model)
        with torch.no_grad():
            for parameter in adapter.shared_projections(model).values():
                parameter.mul_(factor)
    two.save_pretrained(str(tmp_path))
    expected = output(one, batch)
    one.load_adapter(str(tmp_path), "second")
    assert torch.equal(output(one, batch), expected)
    one.set_adapter("second")
    assert torch.equal(output(one, batch), output(two, batch))


@pytest.mark.parametrize("ranks", [(0, R), (R, 0)])
def test_of_two_adapters_one_may_have_none(ranks: tuple[int, int]):
    batch, model = tokens(), attach_adapter(tiny_bert(), config(seed=1, shared_rank=ranks[0]))
    plain = output(tiny_bert(), batch)
    randomise(model)
    first = output(model, batch)
    model.add_adapter("second", config(seed=2, shared_rank=ranks[1], modules_to_save=["classifier"]))
    for name, rank in (("second", ranks[1]), ("default", ranks[0])):
        model.set_adapter(name)
        assert len(adapter.shared_projections(model)) == (2 * 2 * NUM_BLOCKS if rank else 0)
        assert torch.equal(output(model, batch), plain if name == "second" else first)


def gradients(model: nn.Module, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("block", [1, 2])
@every_family
def test_resuming_after_the_frozen_prefix_is_the_whole_model(family: str, block: int):
    model = attach_adapter(FAMILIES[family].make(), config(blocks=f"last-{NUM_BLOCKS - block}"))
    randomise(model)
    batch = FAMILIES[family].batch()
    assert first_adapted_block(model) == block
    full, states = logits(model, batch), prefix_states(model, block, batch)
    enable_resume(model, block)
    resumed = logits(model, {**batch, "prefix_states": states})
    # The arithmetic is the same one on the same batch.
    assert torch.equal(resumed, full)
    pairs = zip(gradients(model, resumed), gradients(model, full), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.fixture
def model(backbone_folder: Path) -> Any:
    """A tiny BERT with the adapter, whose initial zeros are replaced so that every part has an effect."""
    return tiny_model(backbone_folder)


def tiny_model(folder: Path, shared_rank: int = R) -> Any:
    model = attach_adapter(
        load_backbone(str(folder), num_labels=3, seed=0), config(top_k=1, blocks="last-2", shared_rank=shared_rank)
    )
    randomise(model)
    return model


def method(**fields: Any) -> FftMoe:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M, **fields)


def plan_of(moe: FftMoe | LocalOnly, state: ServerState, client_id: int) -> ClientPlan:
    return plan_client(moe, state, client_id, BUDGETS, TRAINING)


def held(client_id: int) -> set[str]:
    return {name for name in NAMES if int(name.split(".")[1]) in BUDGETS[client_id].blocks}


def test_a_block_outside_the_budget_adds_nothing(model: Any):
    """True in a session and in the global model, whatever another client left; the next installation undoes it."""
    moe = method()
    state = moe.init(model)
    batch = examples().batch(range(5))
    layer = next(m for m in model.modules() if isinstance(m, SharedProjection) and (m.block, m.name) == (1, "query"))
    x = torch.randn(T, HIDDEN, generator=generator(3, "x"))
    moe.install(model, state.tensors, LARGE)
    whole = output(model, batch)
    assert not torch.equal(layer(x), layer.base_layer(x))
    plan = plan_of(moe, state, 3)
    for put in (
        lambda: moe.install(model, state.tensors, NARROW),
        lambda: moe.personalize(model, moe.download(state, plan), plan, {}),
    ):
        put()
        assert torch.equal(layer(x), layer.base_layer(x))
        assert not any(p.any() for p in of_block(model, 1))
        for name, parameter in adapter.shared_projections(model).items():
            if name in held(3):
                assert torch.equal(parameter, state.tensors[name])
        moe.install(model, state.tensors, LARGE)
        assert torch.equal(output(model, batch), whole)
