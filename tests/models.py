"""Tiny random models of every family, for tests that need a real architecture but no real weights."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tokenizers
import torch
import transformers
from torch import Tensor, nn

from fftmoe.data import TokenizedText

LABELS = {0: "a", 1: "b", 2: "c"}
NUM_BLOCKS = 3
VOCAB = 31
HIDDEN = 20


class Tiny(NamedTuple):
    """How to build one tiny model; `make()` gives equal weights each time."""

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]


def tokens() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    # Id 1 pads in RoBERTa, 0 in BERT: neither is drawn.
    input_ids = torch.randint(2, VOCAB, (2, 7), generator=generator)
    attention_mask = torch.ones(2, 7, dtype=torch.int64)
    attention_mask[1, 5:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))}


def _encoder(model_class: type, config_class: type, **extra: object) -> Tiny:
    def make() -> nn.Module:
        config = config_class(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=NUM_BLOCKS,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=17,
            id2label=LABELS,
            **extra,
        )
        return _build(model_class, config)

    return Tiny(make, tokens)


def _decoder(model_class: type, config_class: type) -> Tiny:
    return _encoder(model_class, config_class, num_key_value_heads=1, head_dim=10, pad_token_id=0)


def _build(model_class: type, config: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model_class(config).requires_grad_(False).eval()


def _distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=VOCAB,
        dim=HIDDEN,
        n_layers=NUM_BLOCKS,
        n_heads=2,
        hidden_dim=24,
        max_position_embeddings=17,
        id2label=LABELS,
    )
    return _build(transformers.DistilBertForSequenceClassification, config)


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=HIDDEN,
        n_layer=NUM_BLOCKS,
        n_head=2,
        n_positions=17,
        id2label=LABELS,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _build(transformers.GPT2ForSequenceClassification, config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        intermediate_size=24,
        id2label=LABELS,
    )
    return _build(transformers.ViTForImageClassification, config)


def _moe() -> nn.Module:
    config = transformers.Qwen2MoeConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=17,
        pad_token_id=0,
        id2label=LABELS,
    )
    return _build(transformers.Qwen2MoeForSequenceClassification, config)


def _h_blocks(model_class: type, config_class: type) -> Tiny:
    """BLOOM and Falcon."""

    def make() -> nn.Module:
        config = config_class(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_hidden_layers=NUM_BLOCKS,
            num_attention_heads=2,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            id2label=LABELS,
        )
        return _build(model_class, config)

    return Tiny(make, tokens)


def _dinov2() -> nn.Module:
    config = transformers.Dinov2Config(
        image_size=8,
        patch_size=4,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        mlp_ratio=2,
        id2label=LABELS,
    )
    return _build(transformers.Dinov2ForImageClassification, config)


def _clip() -> nn.Module:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 8, "patch_size": 4}, text_config={**sizes, "vocab_size": VOCAB}
    )
    config.id2label = LABELS
    return _build(transformers.CLIPForImageClassification, config)


_PADDED = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
FAMILIES: dict[str, Tiny] = {
    "bloom": _h_blocks(transformers.BloomForSequenceClassification, transformers.BloomConfig),
    "clip": Tiny(_clip, images),
    "deberta-v2": _encoder(
        transformers.DebertaV2ForSequenceClassification,
        transformers.DebertaV2Config,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    ),
    "dinov2": Tiny(_dinov2, images),
    "falcon": _h_blocks(transformers.FalconForSequenceClassification, transformers.FalconConfig),
    "gemma2": _decoder(transformers.Gemma2ForSequenceClassification, transformers.Gemma2Config),
    "gemma3_text": _decoder(transformers.Gemma3TextForSequenceClassification, transformers.Gemma3TextConfig),
    "gpt_neox": _encoder(transformers.GPTNeoXForSequenceClassification, transformers.GPTNeoXConfig, **_PADDED),
    "modernbert": _encoder(
        transformers.ModernBertForSequenceClassification,
        transformers.ModernBertConfig,
        **_PADDED,
        cls_token_id=0,
        sep_token_id=0,
    ),
    "mpnet": _encoder(transformers.MPNetForSequenceClassification, transformers.MPNetConfig),
    "olmo2": _encoder(
        transformers.Olmo2ForSequenceClassification, transformers.Olmo2Config, num_key_value_heads=1, **_PADDED
    ),
    "phi": _encoder(
        transformers.PhiForSequenceClassification,
        transformers.PhiConfig,
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.4, "rope_type": "default"},
        **_PADDED,
    ),
    "phi3": _encoder(transformers.Phi3ForSequenceClassification, transformers.Phi3Config, **_PADDED),
    "qwen2_moe": Tiny(_moe, tokens),
    "smollm3": _decoder(transformers.SmolLM3ForSequenceClassification, transformers.SmolLM3Config),
    "bert": _encoder(transformers.BertForSequenceClassification, transformers.BertConfig),
    "camembert": _encoder(transformers.CamembertForSequenceClassification, transformers.CamembertConfig),
    "distilbert": Tiny(_distilbert, tokens),
    "electra": _encoder(transformers.ElectraForSequenceClassification, transformers.ElectraConfig),
    "gemma": _decoder(transformers.GemmaForSequenceClassification, transformers.GemmaConfig),
    "gpt2": Tiny(_gpt2, tokens),
    "llama": _decoder(transformers.LlamaForSequenceClassification, transformers.LlamaConfig),
    "mistral": _decoder(transformers.MistralForSequenceClassification, transformers.MistralConfig),
    "qwen2": _decoder(transformers.Qwen2ForSequenceClassification, transformers.Qwen2Config),
    "qwen3": _decoder(transformers.Qwen3ForSequenceClassification, transformers.Qwen3Config),
    "roberta": _encoder(transformers.RobertaForSequenceClassification, transformers.RobertaConfig),
    "vit": Tiny(_vit, images),
    "xlm-roberta": _encoder(transformers.XLMRobertaForSequenceClassification, transformers.XLMRobertaConfig),
}


FUSED = frozenset({"bloom", "falcon", "gpt2", "gpt_neox", "modernbert", "phi3"})
"""The families whose query and value projections are one layer with that of the keys."""


def tiny_bert() -> nn.Module:
    return FAMILIES["bert"].make()


def tiny_tokenizer(words: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    """Splits words at spaces and adds `[CLS] … [SEP]`; the vocabulary of `tiny_bert` has room for 27 words."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: i for i, word in enumerate((*special, *words))}
    assert len(vocabulary) <= VOCAB
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=17, **dict(zip(names, special, strict=True))
    )


def token_examples(num_examples: int, seed: int) -> TokenizedText:
    """Random token ids of 3 to 11 tokens, with labels 0 to 2 in turn, for the tiny models."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (num_examples,), generator=generator)
    ids = torch.randint(2, VOCAB, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return TokenizedText(ids, offsets, torch.arange(num_examples) % len(LABELS))
