"""A tiny language model with a tokenizer, and texts that it can learn, for whole runs."""

import csv
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from fftmoe.rng import numpy_generator

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("ash", "bay", "cod", "dew", "elm", "say", "twice", "once", "user", "bot")
PAD, BEGIN, END, UNKNOWN = range(4)
POSITIONS = 37
CHAT = "{% for m in messages %}{{ 'user ' + m.content + ' bot ' if m.role == 'user' else m.content }}{% endfor %}"


def tiny_language_tokenizer(chat_template: str | None = None) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that splits words at spaces, starts with `<s>`, and drops "#"."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Replace("#", " ")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, **dict(zip(names, SPECIAL, strict=True))
    )
    made.chat_template = chat_template
    return made


def save_language_model(folder: Path, family: str = "llama", chat_template: str | None = None) -> Path:
    """A random model of three blocks in `folder`, of a vocabulary a little larger than its tokenizer's."""
    shape: dict[str, Any] = {"vocab_size": 17, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
    shape["initializer_range"] = 0.3  # so that what the frozen part says depends on what it reads
    if family == "gpt2":
        config: Any = transformers.GPT2Config(n_embd=20, n_layer=3, n_head=2, n_positions=POSITIONS, **shape)
    else:
        make = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}[family]
        config = make(
            hidden_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=10,
            intermediate_size=24,
            max_position_embeddings=POSITIONS,
            **shape,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_language_tokenizer(chat_template).save_pretrained(folder)
    return folder


def save_prompts(folder: Path, sizes: tuple[tuple[str, int], ...] = (("train", 61), ("test", 23))) -> Path:
    """Prompts that ask to say a word once or twice, their completions, and both in one text."""
    folder.mkdir(exist_ok=True)
    for split, size in sizes:
        random = numpy_generator(11, split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("prompt", "completion", "text", "kind", "author"))
            for row in range(size):
                word, kind = WORDS[int(random.integers(5))], ("once", "twice")[row % 2]
                prompt = " ".join(["say", word, kind, *["say"] * int(random.integers(4))])
                completion = " ".join([word] * (1 + row % 2))
                writer.writerow((prompt, completion, f"{prompt} {completion}", kind, f"author-{row % 3}"))
    return folder


def language_recipe(model: Path, data: Path) -> dict[str, Any]:
    """Five clients in two tiers, two rounds of three, in this process."""
    return {
        "name": "language",
        "seed": 3,
        "backbone": {"model": str(model), "task": "causal-lm"},
        "data": {
            "source": str(data),
            "prompt": "prompt",
            "completion": "completion",
            "max_length": 19,
            "validation": "off",
        },
        "partition": {"kind": "iid", "num_clients": 5},
        "adapter": {"num_experts": 5, "expert_dim": 4, "blocks": "last-2", "shared_rank": 0, "scale": 1.0},
        "budgets": [
            {"name": "small", "fraction": 0.6, "top_k": 1, "experts": 2},
            {"name": "large", "fraction": 0.4, "top_k": 2, "experts": 5},
        ],
        "federation": {
            "rounds": 2,
            "clients_per_round": 3,
            "local_steps": 3,
            "batch_size": 5,
            "learning_rate": 0.01,
            "aggregation": "per-expert",
            "server_optimizer": "sgd",
        },
        "lora": {"targets": "query-value", "match": "parameters"},
        "engine": {"workers": 1, "precision": "float32"},
        "trackers": [],
    }


def save_pairs(folder: Path, sizes: tuple[tuple[str, int], ...] = (("train", 61), ("test", 23))) -> Path:
    """Prompts that ask to say a word, with an answer that does and one that says another word."""
    folder.mkdir(exist_ok=True)
    for split, size in sizes:
        random = numpy_generator(13, split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("prompt", "chosen", "rejected", "kind", "author"))
            for row in range(size):
                right, step = int(random.integers(5)), 1 + int(random.integers(4))
                good, bad = WORDS[right], WORDS[(right + step) % 5]
                prompt = " ".join(["say", good, *["say"] * int(random.integers(4))])
                times = 1 + row % 2
                writer.writerow(
                    (prompt, " ".join([good] * times), bad, ("once", "twice")[row % 2], f"author-{row % 3}")
                )
    return folder


def preference_recipe(model: Path, data: Path) -> dict[str, Any]:
    """The recipe of `language_recipe` with pairs of answers."""
    recipe = language_recipe(model, data)
    recipe["name"] = "preference"
    recipe["backbone"]["task"] = "preference"
    del recipe["data"]["completion"]
    recipe["data"] |= {"chosen": "chosen", "rejected": "rejected"}
    recipe["preference"] = {"loss": "dpo", "beta": 0.5}
    return recipe
