"""States below the adapter that are kept on disk: what is stored, what its key depends on, and what is not cached."""

import logging
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fftmoe.backbones import (
    logits,
    prefix_states,
)
from fftmoe.backbones.prefix_cache import prefix_key, with_prefix
from fftmoe.config import parse_recipe
from fftmoe.data import Completions, ImageExamples, TokenizedText, WithPrefix
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from frozen_prefix import BLOCK, PLENTY, adapted, gradients
from models import FAMILIES, HIDDEN, token_examples


def assert_near(one: Tensor, other: Tensor) -> None:
    # The same sums, over another number of padding positions and so in another order.
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


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
    assert f"they take {num_bytes:,} bytes, more than the limit of {num_bytes - 1:,} bytes" in caplog.text
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
