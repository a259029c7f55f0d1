"""The default of `data.max_length`: nearly all texts are no longer, whatever tokenizer counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from fftmoe.backbones import load_tokenizer
from fftmoe.config import complete_recipe
from fftmoe.config.text_lengths import Reading, SampledTexts, long_text
from fftmoe.data import Origin, Table, read_tables, tokenize_completions, tokenize_texts
from language import CHAT
from tables import write_jsonl

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("ash", "bay", "cod", "dew", "elm", "say", "user", "bot")


def save_tokenizer(folder: Path, kind: str, positions: int = 4099, family: str = "llama") -> Path:
    """A folder with what is read of a model before its weights: its configuration and its tokenizer."""
    letters = sorted({letter for word in WORDS for letter in word})
    names = letters if kind == "letters" else WORDS
    vocabulary = {name: number for number, name in enumerate((*SPECIAL, *names))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    pre = tokenizers.pre_tokenizers
    made.pre_tokenizer = pre.Split(tokenizers.Regex("."), "isolated") if kind == "letters" else pre.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    keys = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **keys)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    config: Any = {"llama": transformers.LlamaConfig, "roberta": transformers.RobertaConfig}[family]
    config(max_position_embeddings=positions, pad_token_id=0).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")  # nobody loads it
    return folder


def texts_of(sizes: list[int]) -> list[str]:
    """Texts of so many words, of 4 letters each with the blank before the next."""
    return [" ".join(WORDS[n % 5] for n in range(size)) for size in sizes]


SIZES = [[3, 5, 7], [1], [*range(1, 54)], [2] * 90 + [300] * 10, [2] * 89 + [31] * 11, [7] * 5]


@pytest.mark.parametrize("sizes", SIZES, ids=[f"{len(sizes)}-{max(sizes)}" for sizes in SIZES])
@pytest.mark.parametrize("kind", ["letters", "words"])
@pytest.mark.parametrize("task", ["sequence-classification", "causal-lm"])
def test_nearly_all_texts_are_no_longer(tmp_path: Path, kind: str, task: str, sizes: list[int]):
    model, sizes = save_tokenizer(tmp_path / "model", kind), sizes * 3
    columns: dict[str, Any] = {"text": texts_of(sizes), "label": ["ab"[n % 2] for n in range(len(sizes))]}
    if task == "causal-lm":
        columns = {"prompt": columns["text"], "completion": [WORDS[n % 5] for n in range(len(sizes))]}
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", columns)
    source = str(tmp_path / "data")
    values = {"data": {"source": source}, "backbone": {"model": str(model), "task": task}}
    data, tokenizer = complete_recipe(values, "test")[0].data, load_tokenizer(str(model))
    length = data.max_length
    labels, most = np.zeros(len(sizes)), 512 if task == "causal-lm" else 128
    if task == "causal-lm":
        table = read_tables(source, {"data.prompt": ["prompt"]})["train"]
        prompts, answers = table.columns["prompt"], table.columns["completion"]
        assert data.chat_template
        found = tokenize_completions(
            Origin("a"), prompts, answers, labels, tokenizer, 9999, data.chat_template
        ).lengths.numpy()
    else:
        found = tokenize_texts(columns["text"], labels, tokenizer, 9999).lengths.numpy()
    longer, allowed = float((found > length).mean()), 0.01 if task == "causal-lm" else 0.1
    assert longer <= allowed or length == most
    assert float((found > length - 16).mean()) > allowed or length == 16  # and no step more than that
    assert length % 16 == 0


@pytest.mark.parametrize(
    ("family", "positions", "completes", "spared", "most"),
    [
        ("llama", 4099, False, 0, 128),
        ("llama", 4099, True, 0, 512),
        ("llama", 101, True, 0, 101),
        ("llama", 101, True, 30, 71),
        ("roberta", 101, False, 0, 100),  # its first position is the one after the padding token's
    ],
)
def test_it_is_no_more_than_the_model_can_read(
    tmp_path: Path, family: str, positions: int, completes: bool, spared: int, most: int
):
    model = save_tokenizer(tmp_path, "letters", positions, family)
    reading = Reading(str(model), completes, chat_template=False, most=512 if completes else 128, spared=spared)
    for words in (200, 100_000):  # of the second only the beginning is counted
        assert long_text(SampledTexts({"data.text": texts_of([words] * 7)}), reading, 16) == most


def test_a_chat_template_counts(tmp_path: Path):
    model = str(save_tokenizer(tmp_path, "words"))
    sample = SampledTexts({"data.prompt": texts_of([15] * 7), "data.completion": texts_of([1] * 7)})
    plain, chat = (
        long_text(sample, Reading(model, completes=True, chat_template=on, most=512), 1) for on in (False, True)
    )
    assert (plain, chat) == (1 + 15 + 1 + 1, 2 + 15 + 1 + 1)  # <s> and the end, or "user" and "bot" and the end


def test_words_that_are_tagged_count_as_the_tokenizer_splits_them(tmp_path: Path):
    rows = [["ash", "bay"]] * 7
    for kind, tokens in (("words", 3), ("letters", 7)):
        model = str(save_tokenizer(tmp_path / kind, kind))
        reading = Reading(model, completes=False, chat_template=False, most=128)
        assert long_text(SampledTexts({"data.tokens": rows}), reading, 1) == tokens


def test_without_the_tokenizer_an_estimate_stands(tmp_path: Path):
    sample = SampledTexts({"data.text": texts_of([10] * 7)})
    reading = Reading(str(tmp_path / "nowhere"), completes=False, chat_template=False, most=128)
    assert long_text(sample, reading, 1) == 2 + 14
    assert long_text(SampledTexts({"data.text": ["木" * 9] * 3}), reading, 1) == 2 + 11


@pytest.mark.parametrize("value", [None, 7, ["a"], "\ud800", "", {"a": 1}])
def test_what_is_no_text_is_for_the_run_to_refuse(tmp_path: Path, value: Any):
    model = str(save_tokenizer(tmp_path, "letters"))
    reading = Reading(model, completes=True, chat_template=False, most=128)
    for key in ("data.text", "data.tokens"):
        assert long_text(SampledTexts({key: [value] * 3}), reading, 16) == 16


def test_the_texts_of_very_large_tables_are_taken_evenly():
    table = Table.of("a", {"text": list(map(str, range(20_011)))})
    texts = SampledTexts.of(table, {"data.text": "text"}).texts["data.text"]
    assert len(texts) == 5_000
    assert (texts[0], texts[-1]) == ("0", "20006")
    assert json.loads(texts[2_500]) == 20_011 // 2


def test_images_have_no_length():
    table = Table.of("a", {"image": [b""], "label": ["a"]})
    sample = SampledTexts.of(table, {"data.image": "image", "data.label": "label"})
    assert long_text(sample, Reading("nowhere", completes=False, chat_template=False, most=128), 16) == 0
