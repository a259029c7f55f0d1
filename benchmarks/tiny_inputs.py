"""Tiny random models and tiny data for runs that take seconds, all made from one seed.

`make_inputs` fills one folder. Recipes name what is in it by relative paths, such as `./encoder` or `./texts`.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import tokenizers
import torch
import transformers
from PIL import Image
from pyarrow import parquet

SEED = 3
WORDS = ("ash", "bay", "cod", "dew", "elm", "fig", "gum", "hay", "ivy")
COLOURS = ("blue", "green", "red")
SITES = ("north", "south")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZES = {"train": 113, "test": 41}
TEXT_LENGTH = 17  # the longest text that the encoder takes, in tokens
PROMPT_LENGTH = 37  # the longest prompt with its completion that the language model takes, in tokens

Row = dict[str, Any]


def make_inputs(folder: Path) -> None:
    """Write every model and every data set of the tiny runs into this folder, which is made."""
    folder.mkdir(parents=True)
    transformers.utils.logging.disable_progress_bar()
    _save(_encoder(), folder / "encoder")
    _tokenizer((*WORDS, *COLOURS), TEXT_LENGTH).save_pretrained(folder / "encoder")
    _save(_language_model(), folder / "decoder")
    _tokenizer((*WORDS, "say", "once", "twice"), PROMPT_LENGTH).save_pretrained(folder / "decoder")
    _save(_vision_model(), folder / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    for split, size in SIZES.items():
        source = random.Random(f"{SEED} {split}")
        _write_lines(folder / "texts" / f"{split}.jsonl", [_text(source, row) for row in range(size)])
        _write_lines(folder / "prompts" / f"{split}.jsonl", [_prompt(source, row) for row in range(size)])
        _write_images(folder / "images" / f"{split}.parquet", source, size)
    for site in SITES:
        source = random.Random(f"{SEED} {site}")
        _write_csv(folder / "sites" / site / "train.csv", [_text(source, row) for row in range(29)])
    source = random.Random(f"{SEED} server")
    _write_csv(folder / "sites" / "server" / "test.csv", [_text(source, row) for row in range(31)])


def _text(source: random.Random, row: int) -> Row:
    """A text in which one colour is named twice and is the label, with targets for every task on texts."""
    label = COLOURS[row % len(COLOURS)]
    words = [*source.choices((*WORDS, *COLOURS), k=source.randint(1, 6)), label, label]
    source.shuffle(words)
    return {
        "text": " ".join(words),
        "label": label,
        "tokens": words,
        "tags": [word if word in COLOURS else "O" for word in words],
        "colours": sorted(set(words) & set(COLOURS)),
        "reds": words.count("red"),
        "share": words.count("red") / len(words),
        "author": f"author-{row % 4}",
    }


def _prompt(source: random.Random, row: int) -> Row:
    """A prompt that asks to say a word once or twice, and the completion that does so."""
    word, times = source.choice(WORDS), 1 + row % 2
    return {"prompt": f"say {word} {('once', 'twice')[times - 1]}", "completion": " ".join([word] * times)}


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_images(path: Path, source: random.Random, size: int) -> None:
    """Noisy pictures that are mostly blue, green or red, as PNG files in one column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for row in range(size):
        pixels = np.frombuffer(source.randbytes(8 * 8 * 3), dtype=np.uint8).reshape(8, 8, 3) // 3
        pixels[:, :, row % len(COLOURS)] += 120
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        pictures.append(file.getvalue())
    labels = [COLOURS[row % len(COLOURS)] for row in range(size)]
    parquet.write_table(pyarrow.table({"image": pictures, "label": labels}), path)


def _tokenizer(words: Sequence[str], length: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that splits texts at spaces and knows only these words."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", SPECIAL.index("[CLS]"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        bos_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
    )


def _encoder() -> transformers.PreTrainedModel:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=31,
            hidden_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=TEXT_LENGTH,
        )
    )


def _language_model() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=31,
            hidden_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=10,
            intermediate_size=24,
            max_position_embeddings=PROMPT_LENGTH,
            pad_token_id=SPECIAL.index("[PAD]"),
            bos_token_id=SPECIAL.index("[CLS]"),
            eos_token_id=SPECIAL.index("[SEP]"),
        )
    )


def _vision_model() -> transformers.PreTrainedModel:
    return transformers.ViTModel(
        transformers.ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
        )
    )


def _save(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Give the model random weights that depend only on the seed, and write it."""
    source = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # biases and the scales of norms stay as they are
                parameter.normal_(std=0.3, generator=source)
    model.save_pretrained(folder)
