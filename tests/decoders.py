"""Tiny random language models, for tests that generate text or train on it."""

from typing import Any

import torch
import transformers
from torch import Tensor

VOCAB, HIDDEN, NUM_BLOCKS = 31, 20, 3
PAD, END = 0, 1


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 37,
    "pad_token_id": PAD,
    "bos_token_id": END,
    "eos_token_id": END,
}


def decoder(family: str) -> Any:
    """A frozen model with a language model's head; equal weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if family == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=VOCAB,
                n_embd=HIDDEN,
                n_layer=NUM_BLOCKS,
                n_head=2,
                n_positions=37,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                pad_token_id=PAD,
                bos_token_id=END,
                eos_token_id=END,
            )
            model: Any = transformers.GPT2LMHeadModel(config)
        elif family == "llama":
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
        else:
            model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))
    return model.requires_grad_(False).eval()


DECODERS = ("gpt2", "llama", "qwen2")


def texts(num_texts: int, seed: int, side: str = "right") -> dict[str, Tensor]:
    """Token ids of 5 to 11 tokens with their mask and labels; padding is on this side."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 12, (num_texts,), generator=source)
    input_ids = torch.randint(2, VOCAB, (num_texts, 11), generator=source)
    places = torch.arange(11)
    places = places if side == "right" else places.flip(0)
    mask = (places < lengths[:, None]).long()
    input_ids = input_ids.where(mask.bool(), PAD)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.where(mask.bool(), -100)}
