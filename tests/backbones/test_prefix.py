"""The frozen prefix: resuming in the middle of a model, and examples that bring its states along."""

import logging
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor, nn

from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.backbones import (
    MeanPoolClassifier,
    attach_adapter,
    enable_resume,
    features,
    first_adapted_block,
    logits,
    prefix_states,
)
from fftmoe.backbones.prefix_cache import prefix_key, with_prefix
from fftmoe.config import parse_recipe
from fftmoe.data import Completions, ImageExamples, TokenizedText, WithPrefix, evaluation_batches
from fftmoe.errors import InputError
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from models import FAMILIES, HIDDEN, LABELS, NUM_BLOCKS, VOCAB, token_examples, tokens

BLOCK = 2
PLENTY = 10**9


def adapted(backbone: nn.Module, block: int = BLOCK) -> nn.Module:
    """Adapters in the blocks from `block` on, with weights that act."""
    config = MoeAdapterConfig(num_experts=5, expert_dim=4, top_k=2, blocks=f"last-{NUM_BLOCKS - block}")
    model = attach_adapter(backbone, config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for moe in blocks(model).values():
            for parameter in moe.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), [p for p in model.parameters() if p.requires_grad]))


def assert_near(one: Tensor, other: Tensor) -> None:
    # The same sums, over another number of padding positions and so in another order.
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def mean_pooled(family: str) -> nn.Module:
    """The family's backbone under a `MeanPoolClassifier`."""
    model = FAMILIES[family].make()
    assert isinstance(model, transformers.PreTrainedModel)
    return MeanPoolClassifier(model.base_model, 3).requires_grad_(False).eval()


def assert_resumes(model: nn.Module, block: int, batch: dict[str, Tensor]) -> None:
    full = logits(model, batch)
    states = prefix_states(model, block, batch)
    enable_resume(model, block)
    resumed = logits(model, {**batch, "prefix_states": states})
    # The arithmetic is the same one on the same batch.
    assert torch.equal(resumed, full)
    pairs = zip(gradients(model, resumed), gradients(model, full), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(logits(model, batch), full)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_gives_the_whole_models_logits_and_gradients(family: str, block: int):
    assert_resumes(adapted(FAMILIES[family].make(), block), block, FAMILIES[family].batch())


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "xlm-roberta"])
def test_resuming_under_mean_pooling(family: str):
    assert_resumes(adapted(mean_pooled(family)), BLOCK, tokens())


def test_a_block_keeps_its_place_where_models_treat_blocks_by_position():
    """Qwen2 looks up each block's mask by number: here the last one attends to three tokens only."""
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=17,
        pad_token_id=0,
        use_sliding_window=True,
        sliding_window=3,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        id2label=LABELS,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Qwen2ForSequenceClassification(config).requires_grad_(False).eval()
    assert_resumes(adapted(model), BLOCK, tokens())


def test_a_bfloat16_backbone_loses_nothing_in_float32_states(tmp_path: Path):
    model, examples = adapted(FAMILIES["bert"].make().to(torch.bfloat16)), token_examples(7, 3)
    cached = with_prefix(model, BLOCK, examples, tmp_path, PLENTY)
    (rows,) = evaluation_batches(examples, 7)
    assert torch.equal(logits(model, cached.batch(rows)), logits(model, examples.batch(rows)))


def test_earlier_blocks_do_not_run_and_later_blocks_do_not_run_for_their_states():
    model = adapted(FAMILIES["bert"].make())
    layers = model.get_submodule("base_model.model.bert.encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    ran: list[int] = []
    for number, layer in enumerate(layers):
        layer.get_submodule("attention").register_forward_hook(lambda *_, number=number: ran.append(number))
    states = prefix_states(model, BLOCK, tokens())
    assert ran == [0, 1]
    assert not states.requires_grad
    enable_resume(model, BLOCK)
    ran.clear()
    logits(model, {**tokens(), "prefix_states": states})
    assert ran == [2]
    ran.clear()
    logits(model, tokens())
    assert ran == [0, 1, 2]


def test_a_failed_pass_leaves_the_model_whole():
    model = adapted(FAMILIES["bert"].make())
    full = logits(model, tokens())
    enable_resume(model, BLOCK)
    with pytest.raises(AssertionError):
        logits(model, {**tokens(), "prefix_states": torch.zeros(2, 5, HIDDEN)})
    assert torch.equal(logits(model, tokens()), full)


def test_a_prepared_model_has_and_saves_the_same_parts():
    model = adapted(FAMILIES["bert"].make())
    before = [name for name, _ in model.named_modules()], list(model.state_dict())
    enable_resume(model, BLOCK)
    assert ([name for name, _ in model.named_modules()], list(model.state_dict())) == before


def test_what_cannot_be_resumed_is_refused():
    model = adapted(FAMILIES["bert"].make())
    for block in (0, 3):
        with pytest.raises(InputError, match=f"block={block}, but the model has 3 blocks; choose between 1 and 2"):
            enable_resume(model, block)
    with pytest.raises(InputError, match="call enable_resume"):
        logits(model, {**tokens(), "prefix_states": torch.zeros(2, 7, HIDDEN)})
    with pytest.raises(InputError, match="block 1 is adapted, and block 2 depends on what it computes"):
        prefix_states(adapted(FAMILIES["bert"].make(), 1).requires_grad_(False), 2, tokens())
    trained = adapted(FAMILIES["bert"].make())
    trained.get_parameter("base_model.model.bert.embeddings.LayerNorm.weight").requires_grad_(True)
    with pytest.raises(InputError, match=r"embeddings\.LayerNorm\.weight is trained, and block 2 depends on what"):
        prefix_states(trained, 2, tokens())
    with pytest.raises(InputError, match="does not know where a None model keeps its blocks"):
        enable_resume(nn.Linear(2, 3), 1)
    with pytest.raises(InputError, match="dropout"):
        enable_resume(model.train(), BLOCK)


def test_the_first_adapted_block_is_found_for_every_kind_of_adapter():
    assert first_adapted_block(adapted(FAMILIES["gpt2"].make(), 1)) == 1
    lora = LoraConfig(target_modules=["query"], layers_to_transform=[1, 2])
    model = attach_adapter(FAMILIES["bert"].make(), lora)
    assert first_adapted_block(model) == 1
    assert_resumes(model, 1, tokens())
    assert first_adapted_block(FAMILIES["vit"].make()) == NUM_BLOCKS - 1  # only a head
    assert first_adapted_block(nn.Linear(2, 3)) == 0


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
def test_features_are_what_the_last_head_module_reads(family: str):
    model, batch = adapted(FAMILIES[family].make()), FAMILIES[family].batch()
    read = features(model, batch)
    assert read.shape == (2, HIDDEN)
    head = model.get_submodule("base_model.model.classifier")
    assert torch.equal(head(read), logits(model, batch))
    enable_resume(model, BLOCK)
    assert torch.equal(features(model, {**batch, "prefix_states": prefix_states(model, BLOCK, batch)}), read)


def test_features_of_mean_pooling_are_its_own():
    model = mean_pooled("roberta")
    assert isinstance(model, MeanPoolClassifier)
    assert torch.equal(features(adapted(model), tokens()), model.features(**tokens()))


def test_features_need_a_head_that_reads_one_vector():
    for family in ("roberta", "llama"):
        with pytest.raises(InputError, match=r"reads a sequence .* set backbone.pooling to mean"):
            features(adapted(FAMILIES[family].make()), tokens())
    model = FAMILIES["bert"].make()
    assert isinstance(model, transformers.PreTrainedModel)
    with pytest.raises(InputError, match="has no classification head; load it for a task"):
        features(model.base_model, tokens())


def write_states(path: Path, lengths: list[int], dim: int) -> tuple[WithPrefix, Tensor]:
    """Examples of these lengths, their states numbered through, one example after the other."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    states = torch.arange(1.0, total * dim + 1).view(total, dim)
    path.write_bytes(states.numpy().tobytes())
    examples = TokenizedText(torch.zeros(total, dtype=torch.int32), offsets, torch.arange(len(lengths)))
    return WithPrefix(examples, path, BLOCK, dim, offsets[:-1], examples.lengths), states


@given(st.lists(st.integers(1, 11), min_size=1, max_size=13), st.data())
def test_a_batch_gathers_each_rows_states_and_pads_with_zero(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
):
    examples, states = write_states(tmp_path_factory.mktemp("states") / "s.bin", lengths, dim=3)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=7))
    for batch in (examples.batch(rows), examples.select(rows).batch(range(len(rows)))):
        longest = max(lengths[row] for row in rows)
        assert batch["prefix_states"].shape == (len(rows), longest, 3)
        assert batch["input_ids"].shape == (len(rows), longest)
        assert batch["labels"].tolist() == rows
        for got, row in zip(batch["prefix_states"], rows, strict=True):
            start = sum(lengths[:row])
            assert torch.equal(got[: lengths[row]], states[start : start + lengths[row]])
            assert not got[lengths[row] :].any()


@pytest.fixture
def cached(tmp_path: Path) -> tuple[nn.Module, TokenizedText, WithPrefix]:
    model, examples = adapted(FAMILIES["bert"].make()), token_examples(101, 3)
    # As in a run whose first use is an evaluation; training must work on it as well.
    with torch.inference_mode():
        result = with_prefix(model, BLOCK, examples, tmp_path / "new", PLENTY)
        result.batch([0])
    assert isinstance(result, WithPrefix)
    return model, examples, result


def test_cached_states_are_the_models_own(cached: tuple[nn.Module, TokenizedText, WithPrefix]):
    model, examples, with_states = cached
    for rows in torch.arange(101).split(17):
        batch = with_states.batch(rows)
        real = batch["attention_mask"].bool()
        own = prefix_states(model, BLOCK, examples.batch(rows))
        assert_near(batch["prefix_states"][real], own[real])
        resumed, full = logits(model, batch), logits(model, examples.batch(rows))
        assert_near(resumed, full)
        for one, other in zip(gradients(model, resumed), gradients(model, full), strict=True):
            assert_near(one, other)
    assert torch.equal(with_states.lengths, examples.lengths)
    assert torch.equal(with_states.labels, examples.labels)
    assert len(with_states) == 101


def test_images_have_as_many_states_each(tmp_path: Path):
    model = adapted(FAMILIES["vit"].make())
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    examples = ImageExamples(pixels, torch.arange(3), mean=(0.5,) * 3, std=(0.2,) * 3, scale=1 / 255)
    with_states = with_prefix(model, BLOCK, examples, tmp_path, PLENTY)
    batch = with_states.batch([2, 0])
    assert batch["prefix_states"].shape == (2, 5, HIDDEN)  # four patches and the class token
    assert_near(logits(model, batch), logits(model, examples.batch([2, 0])))


def test_pickled_it_is_a_path(cached: tuple[nn.Module, TokenizedText, WithPrefix]):
    _, _, with_states = cached
    data = pickle.dumps(with_states)
    assert len(data) < with_states.path.stat().st_size / 4
    there = pickle.loads(data)
    assert torch.equal(there.batch([3, 50])["prefix_states"], with_states.batch([3, 50])["prefix_states"])
    maps = Path("/proc/self/maps")
    if maps.exists():  # both are views of the file, whose pages every process shares
        assert maps.read_text().count(str(with_states.path)) == 2


@pytest.mark.one_rounding("inference mode, which has other operations")
def test_a_second_time_nothing_is_computed(
    cached: tuple[nn.Module, TokenizedText, WithPrefix], monkeypatch: pytest.MonkeyPatch
):
    model, examples, with_states = cached
    assert [path.suffix for path in with_states.path.parent.iterdir()] == [".bin"]  # no temporary file stays
    whole = with_states.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "fftmoe.backbones.prefix_cache.write_states", lambda *_: pytest.fail("computed although it was cached")
        )
        again = with_prefix(model, BLOCK, examples, with_states.path.parent, PLENTY)
        assert torch.equal(again.batch([5])["prefix_states"], with_states.batch([5])["prefix_states"])
    # An incomplete file is made again.
    with_states.path.unlink()
    with_states.path.write_bytes(whole[:-4])
    with_prefix(model, BLOCK, examples, with_states.path.parent, PLENTY)
    assert with_states.path.read_bytes() == whole


def test_the_key_follows_whatever_decides_the_states():
    examples = token_examples(7, 3)
    ids = examples.input_ids.clone()
    ids[-1] = 2 if ids[-1] != 2 else 3

    def changed(parameter: str, block: int = BLOCK) -> nn.Module:
        model = adapted(FAMILIES["bert"].make(), block)
        if parameter:
            with torch.no_grad():
                model.get_parameter(f"base_model.model.{parameter}").add_(1e-3)
        return model

    other_norm = adapted(FAMILIES["bert"].make())
    cast(Any, other_norm).config.layer_norm_eps = 1e-3
    same = changed("")
    keys = [
        prefix_key(same, 2, examples),
        prefix_key(changed("", block=1), 1, examples),
        prefix_key(changed("bert.embeddings.word_embeddings.weight"), 2, examples),
        prefix_key(changed("bert.encoder.layer.1.output.dense.bias"), 2, examples),
        prefix_key(other_norm, 2, examples),
        prefix_key(adapted(FAMILIES["bert"].make().to(torch.bfloat16)), 2, examples),
        prefix_key(same, 2, replace(examples, input_ids=ids)),
        prefix_key(same, 2, examples.select([1, 0, 2, 3, 4, 5, 6])),
    ]
    assert len(set(keys)) == len(keys)
    # Nor does it follow what cannot: adapters, later blocks, the head, and the labels.
    for name in ("bert.encoder.layer.2.attention.output.dense.bias", "classifier.modules_to_save.default.bias"):
        assert prefix_key(changed(name), 2, examples) == keys[0]
    assert prefix_key(same, 2, replace(examples, labels=examples.labels + 1)) == keys[0]


def test_the_key_sees_every_token_of_texts_with_answers():
    """Of so many that they are not written out where they are shown."""
    model, texts = adapted(FAMILIES["bert"].make()), token_examples(1009, 3)
    ids = texts.input_ids.clone()
    middle = len(ids) // 2
    ids[middle] = 2 if ids[middle] != 2 else 3
    starts = torch.zeros(len(texts), dtype=torch.int64)
    key = prefix_key(model, 2, Completions(texts, starts))
    assert prefix_key(model, 2, Completions(replace(texts, input_ids=ids), starts)) != key
    assert prefix_key(model, 2, Completions(replace(texts, labels=texts.labels + 1), starts)) == key


def test_what_cannot_be_cached_is_left_as_it_is_with_a_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, full_disk: Callable[[int], AbstractContextManager[None]]
):
    caplog.set_level(logging.INFO)
    model, examples = adapted(FAMILIES["bert"].make()), token_examples(101, 3)
    num_bytes = len(examples.input_ids) * HIDDEN * 4
    assert with_prefix(model, BLOCK, examples, tmp_path, num_bytes - 1) is examples
    assert f"they take {num_bytes} bytes, more than the limit of {num_bytes - 1} bytes" in caplog.text
    assert with_prefix(model, 0, examples, tmp_path, PLENTY) is examples
    assert "the adapter begins in the model's first block" in caplog.text
    with full_disk(num_bytes // 2):
        assert with_prefix(model, BLOCK, examples, tmp_path, PLENTY) is examples
    assert "cannot write" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert with_prefix(model.train(), BLOCK, examples, tmp_path, PLENTY) is examples
    assert "dropout" in caplog.text
    assert isinstance(with_prefix(model.eval(), BLOCK, examples, tmp_path, num_bytes), WithPrefix)


def test_a_plan_says_what_the_cache_will_take_and_computes_nothing(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path))
    recipe = parse_recipe(recipe_values, "test")
    plan = forecast(recipe)
    assert not list(tmp_path.glob("prefix-*"))
    assert plan.prefix_refused is None
    compose(recipe)
    assert plan.prefix_bytes == sum(file.stat().st_size for file in tmp_path.glob("prefix-*.bin")) > 0


@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        ("engine", {"prefix_cache": "off"}, "engine.prefix_cache is off"),
        ("adapter", {"blocks": "all"}, "the adapter begins in the model's first block"),
    ],
)
def test_a_plan_says_why_nothing_is_cached(
    recipe_values: dict[str, Any], section: str, change: dict[str, str], reason: str
):
    plan = forecast(parse_recipe({**recipe_values, section: {**recipe_values[section], **change}}, "test"))
    assert plan.prefix_bytes == 0
    assert plan.prefix_refused is not None
    assert plan.prefix_refused.startswith(reason)
