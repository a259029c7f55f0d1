"""The adapter on every family: attach, train, save, load, switch off. And what a user reads when it cannot attach."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

from fftmoe.adapter import MoeAdapterConfig, blocks, record_routing
from fftmoe.adapter.families import FAMILIES as KNOWN
from fftmoe.adapter.families import NO_PLACE
from fftmoe.adapter.model import PER_ROW
from fftmoe.backbones import attach_adapter, load_adapter, logits
from fftmoe.errors import InputError
from fftmoe.rng import generator
from models import FAMILIES, HIDDEN, NUM_BLOCKS, tiny_bert, tokens

# peft 0.21 reads an attribute that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def small_config(**changes: Any) -> MoeAdapterConfig:
    arguments: dict[str, Any] = {"num_experts": 5, "expert_dim": 4, "top_k": 2}
    return MoeAdapterConfig(**(arguments | changes))


def randomise(model: nn.Module) -> None:
    """Gives every block a down-projection, so that the adapter has an effect."""
    for block, moe in blocks(model).items():
        nn.init.normal_(moe.down, generator=generator(1, block))


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return logits(model, batch)


def test_these_tests_cover_every_known_family():
    assert sorted(FAMILIES) == sorted(KNOWN)


@every_family
def test_an_untrained_adapter_is_exactly_the_backbone(family: str):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    expected = output(backbone, batch)
    model = attach_adapter(backbone, small_config())
    assert list(blocks(model)) == list(range(NUM_BLOCKS))
    assert all(moe.up.shape == (5, 4, HIDDEN) for moe in blocks(model).values())
    assert torch.equal(output(model, batch), expected)


@every_family
def test_a_training_step_changes_only_the_adapter_and_the_head(family: str):
    model = attach_adapter(FAMILIES[family].make(), small_config())
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    nn.functional.cross_entropy(logits(model, FAMILIES[family].batch()), torch.tensor([0, 2])).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".moe_experts." in name or ".modules_to_save." in name for name in changed)
    for part in ("router.weight", "up", "down"):
        assert sum(name.endswith(part) for name in changed if ".moe_experts." in name) == NUM_BLOCKS


@every_family
def test_a_saved_adapter_loads_bit_for_bit_and_can_be_switched_off(family: str, tmp_path: Path):
    backbone, batch = FAMILIES[family].make(), FAMILIES[family].batch()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, small_config(blocks="last-2", gates="renormalized"))
    randomise(model)
    expected = output(model, batch)
    assert not torch.equal(expected, plain)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(FAMILIES[family].make(), str(tmp_path))
    assert torch.equal(output(loaded, batch), expected)
    assert torch.equal(output(load_adapter(FAMILIES[family].make(), tmp_path), batch), expected)
    with loaded.disable_adapter():
        assert torch.equal(output(loaded, batch), plain)
    assert torch.equal(output(loaded, batch), expected)


def test_what_is_saved_is_plain_and_does_not_depend_on_the_adapter_name(tmp_path: Path):
    model = attach_adapter(tiny_bert(), small_config(blocks=[1]), adapter_name="mine")
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["blocks"], saved["target_modules"]) == ("FFT_MOE", [1], None)
    with safe_open(tmp_path / "mine" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    prefix = "base_model.model.bert.encoder.layer.1.output.moe_experts"
    head = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    assert names == {f"{prefix}.{part}" for part in ("router.weight", "up", "down")} | head


def test_several_adapters_can_be_switched_and_dropped():
    batch = tokens()
    backbone = tiny_bert()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, small_config(seed=1))
    randomise(model)
    first = output(model, batch)
    model.add_adapter("second", small_config(seed=2, num_experts=3, blocks="last-1", modules_to_save=["classifier"]))
    assert torch.equal(output(model, batch), first)
    model.set_adapter("second")
    assert [moe.num_experts for moe in blocks(model).values()] == [3]
    assert torch.equal(output(model, batch), plain)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".second." in name for name in trainable)
    model.set_adapter("default")
    assert torch.equal(output(model, batch), first)


def test_another_adapter_in_each_row_is_refused():
    """PEFT drops the argument before the model sees it, so that every row would get the active adapter."""
    model, batch = get_peft_model(tiny_bert(), small_config()), tokens()
    for name in PER_ROW:
        with pytest.raises(InputError, match=f"{name} .* set_adapter"):
            model(**batch, **{name: ["default"] * len(batch["input_ids"])})
    assert set(PER_ROW) == model.special_peft_forward_args
    with torch.no_grad():
        assert torch.equal(model(**batch, adapter_names=None).logits, model(**batch).logits)


def test_unload_gives_back_the_backbone_and_merge_says_why_it_cannot():
    batch, backbone = tokens(), tiny_bert()
    plain = output(backbone, batch)
    model = get_peft_model(backbone, small_config())
    randomise(model)
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_adapter()
    assert torch.equal(output(model.unload(), batch), plain)


@pytest.mark.parametrize(
    ("chosen", "expected"), [("all", [0, 1, 2]), (None, [0, 1, 2]), ("last-2", [1, 2]), ([2, 0], [0, 2])]
)
def test_blocks_are_chosen_by_name_or_index(chosen: list[int] | str | None, expected: list[int]):
    model = attach_adapter(tiny_bert(), small_config(blocks=chosen))
    assert list(blocks(model)) == expected


def test_a_block_starts_the_same_whichever_others_are_adapted():
    everywhere = blocks(attach_adapter(tiny_bert(), small_config()))
    last = blocks(attach_adapter(tiny_bert(), small_config(blocks="last-1")))
    assert torch.equal(everywhere[2].up, last[2].up)
    assert not torch.equal(everywhere[1].up, everywhere[2].up)


@pytest.mark.parametrize("chosen", [[3], [-1], [], "last-4"])
def test_blocks_beyond_the_model_are_refused_with_their_number(chosen: list[int] | str):
    with pytest.raises(InputError, match="the model has 3 blocks"):
        attach_adapter(tiny_bert(), small_config(blocks=chosen))


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(7, 11)
        self.up = nn.Linear(11, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())


class Unknown(nn.Module):
    """No transformers model at all: two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Feed(), Feed()])
        self.mlp = nn.Linear(7, 7)
        self.ffn = nn.Linear(7, 11)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = x + stage(x)
        return x


def test_an_unknown_family_is_refused_with_what_to_pass():
    with pytest.raises(InputError) as caught:
        get_peft_model(Unknown(), small_config())
    message = str(caught.value)
    assert "model_type='None'" in message
    assert "distilbert" in message
    assert "target_modules=['mlp']" in message
    assert "adapter.target_modules in a recipe" in message
    assert message.endswith("Candidates in this model: mlp")  # and not `ffn`, whose result has another width


def test_half_of_a_feed_forward_network_is_no_target():
    with pytest.raises(InputError, match=r"^target module 'ffn' \(Linear\) maps 7 numbers to 11, "):
        get_peft_model(Unknown(), small_config(target_modules=["ffn"]))


@pytest.mark.parametrize("named", [r"stages\.\d", ["stages.0", "stages.1"]])
def test_an_unknown_model_is_adapted_where_the_user_says(named: str | list[str], tmp_path: Path):
    weights, x = Unknown().state_dict(), torch.randn(5, 7, generator=generator(0))

    def model() -> nn.Module:
        fresh = Unknown()
        fresh.load_state_dict(weights)
        return fresh

    adapted = get_peft_model(model(), small_config(target_modules=named))
    assert list(blocks(adapted)) == [0, 1]
    assert torch.equal(adapted(x), model()(x))
    randomise(adapted)
    # The convention is y = FFN(x) + MoE(x).
    stage = adapted.get_submodule("base_model.model.stages.0")
    torch.testing.assert_close(stage(x), stage.get_submodule("base_layer")(x) + blocks(adapted)[0](x))
    adapted.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == named
    assert torch.equal(PeftModel.from_pretrained(model(), str(tmp_path))(x), adapted(x))


def test_excluded_modules_stay_as_they_are():
    adapted = get_peft_model(Unknown(), small_config(target_modules=r"stages\.\d", exclude_modules=["stages.0"]))
    assert list(blocks(adapted)) == [0]
    assert type(adapted.get_submodule("base_model.model.stages.0")) is Feed


def test_target_modules_that_match_nothing_are_refused():
    with pytest.raises(InputError, match="matches 'nowhere'"):
        get_peft_model(tiny_bert(), small_config(target_modules="nowhere"))
    with pytest.raises(InputError, match=r"'0' \(ReLU\) has no nn.Linear"):
        get_peft_model(nn.Sequential(nn.ReLU()), small_config(target_modules="0"))


def _opt() -> nn.Module:
    config = transformers.OPTConfig(
        vocab_size=31, hidden_size=20, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=20
    )
    return transformers.OPTModel(config)


def _albert() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 20, "intermediate_size": 24, "num_attention_heads": 2, "embedding_size": 7}
    return transformers.AlbertModel(transformers.AlbertConfig(vocab_size=31, **sizes))


def _t5() -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 20, "d_kv": 10, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return transformers.T5Model(transformers.T5Config(vocab_size=31, **sizes))


def _two_stacks() -> dict[str, Any]:
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    own = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    return {"vocab_size": 31, "d_model": 20, "pad_token_id": 0, **own}


def _bart() -> nn.Module:
    return transformers.BartModel(transformers.BartConfig(**_two_stacks()))


def _whisper() -> nn.Module:
    return transformers.WhisperModel(transformers.WhisperConfig(num_mel_bins=8, **_two_stacks()))


def _swin() -> nn.Module:
    return transformers.SwinModel(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
    )


WITHOUT_A_PLACE = {"albert": _albert, "bart": _bart, "opt": _opt, "swin": _swin, "t5": _t5, "whisper": _whisper}


@pytest.mark.parametrize("family", WITHOUT_A_PLACE)
def test_a_family_without_a_place_for_the_adapter_is_refused_with_the_reason(family: str):
    model = WITHOUT_A_PLACE[family]()
    with pytest.raises(InputError) as caught:
        get_peft_model(model, small_config())
    message = str(caught.value)
    assert NO_PLACE[family] in message
    candidates = message.partition("Candidates in this model: ")[2]
    # What is suggested can be adapted.
    for candidate in filter(None, candidates.removesuffix(", ...").split(", ")):
        get_peft_model(copy.deepcopy(model), small_config(target_modules=[candidate]))


@pytest.mark.parametrize(
    ("family", "guess", "words"),
    [
        ("opt", ["fc1"], "maps 20 numbers to 24"),
        ("bart", ["fc2"], "maps 24 numbers to 20"),
        ("albert", ["ffn"], "maps 20 numbers to 24"),
        ("whisper", ["fc1"], "maps 20 numbers to 24"),
    ],
)
def test_a_guess_that_is_no_whole_feed_forward_network_is_refused(family: str, guess: list[str], words: str):
    with pytest.raises(InputError, match=rf"{words}.*name modules that hold a whole feed-forward network"):
        get_peft_model(WITHOUT_A_PLACE[family](), small_config(target_modules=guess))


@pytest.mark.parametrize("family", ["deberta-v2", "mpnet"])
def test_the_same_guess_is_refused_in_a_family_that_is_known(family: str):
    with pytest.raises(InputError, match=r"intermediate.* maps 20 numbers to 24"):
        attach_adapter(FAMILIES[family].make(), small_config(target_modules=["intermediate"]))


def test_a_client_without_experts_in_a_block_computes_the_backbone_there():
    batch, backbone = tokens(), tiny_bert()
    plain = output(backbone, batch)
    model = attach_adapter(backbone, small_config())
    randomise(model)
    with record_routing(model) as read:
        for moe in blocks(model).values():
            moe.load_experts(moe.router.weight[:0], moe.up[:0], moe.down[:0], 2)
        assert torch.equal(output(model, batch), plain)
        assert read() == {}


def test_recorded_routing_is_read_once_and_leaves_nothing_behind():
    model = attach_adapter(tiny_bert(), small_config(blocks=[0, 2]))
    batch = tokens()
    with record_routing(model) as read:
        logits(model, batch)
        routings = read()
        assert list(routings) == [0, 2]
        assert routings[0].logits_TM.shape == (batch["attention_mask"].numel(), 5)
        assert routings[0].probs_TM.requires_grad
        assert read() == {}
    logits(model, batch)
    assert read() == {}
    assert not any(moe.router._forward_hooks for moe in blocks(model).values())


def test_the_adapter_stays_float32_next_to_a_bfloat16_backbone():
    model = attach_adapter(tiny_bert().bfloat16(), small_config())
    randomise(model)
    assert {p.dtype for moe in blocks(model).values() for p in moe.parameters()} == {torch.float32}
    assert output(model, tokens()).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 6}, "top_k=6 with num_experts=5"),
        ({"top_k": 0}, "top_k=0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"expert_dim": 0}, "expert_dim=0"),
        ({"gates": "detach"}, "did you mean 'detached'"),
        ({"activation": "gellu"}, "did you mean 'gelu'"),
        ({"compute": "wid"}, "did you mean 'wide'"),
        ({"blocks": "lats-2"}, "'last-2'"),
        ({"blocks": "last-0"}, "'last-2'"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_remedy(changes: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        small_config(**changes)
