"""Merged weights and GGUF files: plain transformers opens them, and they answer as the exported LoRA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.exports.gguf_file import interleaved, pre_tokenizer
from fftmoe.exports.merged import check_mergeable
from fftmoe.setup.export import export_run
from fftmoe.setup.finished import load_run
from fftmoe.setup.run import run
from finished import Finished
from five_clients import changed
from language import language_recipe, save_prompts
from run_fixtures import RunLanguage

IDS = torch.arange(3 * 7).view(3, 7) % 13


def byte_level(words: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2 has one, with an end token and a chat template."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(words, vocab_size=290, min_frequency=2, special_tokens=["<|end|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<|end|>")
    tokenizer.pad_token = "<|end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tuned Llama with a byte-level tokenizer, more places than tokens, and queries that share keys."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=311,
        hidden_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=24,
        max_position_embeddings=61,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    byte_level(["say ash twice", "say bay once", "cod dew elm", "17 times 23"] * 5).save_pretrained(folder / "model")
    recipe = language_recipe(folder / "model", save_prompts(folder / "data"))
    recipe["data"] |= {"max_length": 48, "chat_template": True}
    run(parse_recipe(changed(recipe, method="fedit"), "test"), folder / "run")
    return Finished(folder / "run")


@pytest.mark.parametrize("method", ["fedit", "fft-moe"])
def test_merged_weights_open_in_plain_transformers(run_language: RunLanguage, tmp_path: Path, method: str):
    finished = run_language(method=method)
    options = {} if method == "fedit" else {"steps": 3}
    about = export_run(finished.folder, "merged", tmp_path / "merged", options)
    plain: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    lora = export_run(finished.folder, "lora", tmp_path / "lora", options)
    assert about["lora"].items() <= lora.items()
    assert about["max_difference"] <= about["tolerance"]
    assert not (tmp_path / "merged" / "scratch").exists()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")("say ash")["input_ids"]
    if method == "fedit":  # which is merged as it is
        with torch.inference_mode():
            ours = load_run(finished.folder, exact=True).model(input_ids=IDS).logits
            # A few hundred products in another order, of logits below ten.
            torch.testing.assert_close(plain(input_ids=IDS).logits, ours, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("kind", ["merged", "gguf"])
def test_an_export_shows_no_bar_of_a_library(
    tuned: Finished, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
):
    capfd.readouterr()
    export_run(tuned.folder, kind, tmp_path / kind)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_what_has_no_weights_to_merge_into_is_refused(tiny_run: Finished, tmp_path: Path):
    with pytest.raises(InputError, match="head on pooled features"):
        export_run(tiny_run.folder, "merged", tmp_path / "merged")
    with pytest.raises(InputError, match="writes language models"):
        export_run(tiny_run.folder, "gguf", tmp_path / "gguf")
    assert not list(tmp_path.iterdir())


def test_a_head_on_random_features_is_refused_before_anything_is_computed(tiny_run: Finished):
    """That of an image model by default, which is not pooled here."""
    run = load_run(tiny_run.folder, exact=True).run
    images = replace(run, task="image-classification", backbone=replace(run.backbone, fourier_features=0))
    check_mergeable(images)
    with pytest.raises(InputError, match=r"reads random features.*head\.features=linear"):
        check_mergeable(replace(images, backbone=replace(run.backbone, fourier_features=7)))


def test_a_gguf_file_is_read_back_with_the_same_logits_and_tokens(tuned: Finished, tmp_path: Path):
    about = export_run(tuned.folder, "gguf", tmp_path / "gguf")
    assert about["max_difference"] <= about["tolerance"]
    place: dict[str, Any] = {"pretrained_model_name_or_path": tmp_path / "gguf", "gguf_file": "model.gguf"}
    read = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    with torch.inference_mode():
        ours = load_run(tuned.folder, exact=True).model(input_ids=IDS).logits
        torch.testing.assert_close(read(input_ids=IDS).logits, ours, rtol=0.0, atol=1e-3)
    assert tokenizer.decode(tokenizer("say été 17")["input_ids"]) == "say été 17"
    assert (tmp_path / "gguf" / "Modelfile").read_text() == "FROM ./model.gguf\n"
    assert "say" not in (tmp_path / "gguf" / "export.json").read_text()


def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(run_language: RunLanguage, tmp_path: Path):
    with pytest.raises(InputError, match="no byte-level BPE"):
        export_run(run_language(method="fedit").folder, "gguf", tmp_path / "gguf")
    assert not list(tmp_path.iterdir())


def test_digits_by_themselves_have_a_name_of_their_own():
    assert pre_tokenizer(byte_level(["1 2 3", "say"])) == "smollm"
    assert pre_tokenizer(byte_level(["17 23 17 23", "17 17"] * 9)) == "gpt-2"


def test_rows_are_interleaved_as_pairs_that_are_rotated():
    weight = torch.arange(2 * 6.0)[:, None].expand(12, 5)
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
