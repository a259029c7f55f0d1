"""Writes a merged language model as one GGUF file, which llama.cpp and Ollama read.

The package gguf knows the format; which tensor has which name, and how llama.cpp stores queries and keys, is here. The
file is read back with transformers before it appears, and must give the logits of the merged model.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import load_tokenizer, open_gguf
from fftmoe.errors import InputError, RunError
from fftmoe.exports.check import REORDERED, answers, difference, probes, require
from fftmoe.exports.folder import file_digest, write_text
from fftmoe.exports.merged import merged_model
from fftmoe.store import disk_errors
from fftmoe.trained.run import FinishedRun, TrainedModel

FILE = "model.gguf"
ALL_FLOAT32 = 0  # the file type of llama.cpp
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens in the format
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""The names of a block's modules in a Llama of transformers and in the format."""
SAMPLE = "It's 2026:\n\n  def f(x1):  # été, 12345\treturn «x»  "


def check_convertible(run: FinishedRun) -> None:
    """Refuse a run whose model has no form here in this format; before anything that takes long.

    Raises:
        InputError: it is one, or a package is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            "--to gguf needs the package gguf, which is not installed; run: pip install 'fftmoe[language]'"
        )
    if run.task != "causal-lm" and run.task != "preference":
        raise InputError(f"--to gguf writes language models, and this run is {run.task}; export --to merged or onnx")


def export_gguf(trained: TrainedModel, lora: Path, folder: Path) -> dict[str, Any]:
    """Write the model with an exported LoRA in its weights as a file in float32, and a `Modelfile` for Ollama.

    llama.cpp's own tool makes smaller ones of it: `llama-quantize model.gguf small.gguf Q4_K_M`.

    Returns:
        What `export.json` records about this format.

    Raises:
        InputError: the model's family or its tokenizer has no form here. RunError: the file gives other logits.
    """
    merged, of_lora = merged_model(trained, lora)
    tokenizer = load_tokenizer(trained.run.backbone.model)
    _check_family(merged)
    before_words = pre_tokenizer(tokenizer)
    with disk_errors(folder):
        _write(folder / FILE, merged, tokenizer, before_words)
    write_text(folder / "Modelfile", f"FROM ./{FILE}\n")
    compared = _compared(trained, merged, tokenizer, folder)
    return {**compared, "weights": file_digest(folder / FILE), "merged": of_lora}


def _check_family(model: Any) -> None:
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    reasons = {
        f"its family is {config.model_type}, and only llama is written": config.model_type != "llama",
        "its layers have biases": getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False),
        "its positions are scaled": rope.get("rope_type", "default") != "default",
    }
    if reason := next((text for text, holds in reasons.items() if holds), None):
        raise InputError(
            f"this model has no form in GGUF here: {reason}; export --to merged, and convert the folder with "
            "convert_hf_to_gguf.py of llama.cpp"
        )


def pre_tokenizer(tokenizer: Any) -> str:
    """Return the name that llama.cpp has for how this tokenizer splits a text before it merges bytes.

    Raises:
        InputError: it is no byte-level BPE with the pattern of GPT-2, with digits by themselves or not.
    """
    known: Any = json.loads(tokenizer.backend_tokenizer.to_str())
    before = known["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    digits = {"type": "Digits", "individual_digits": True}
    plain = all(step.get("use_regex", True) and not step.get("add_prefix_space") for step in steps)
    kinds = [step.get("type") for step in steps]
    byte_level = known["model"]["type"] == "BPE" and known["normalizer"] is None and plain
    if byte_level and kinds == ["ByteLevel"]:
        return "smollm" if _digits_alone(tokenizer) else "gpt-2"
    if byte_level and kinds == ["Digits", "ByteLevel"] and steps[0] == digits:
        return "smollm"
    raise InputError(
        "the tokenizer of this model is no byte-level BPE of a kind that is written here; export --to merged, and "
        "convert the folder with convert_hf_to_gguf.py of llama.cpp"
    )


def _digits_alone(tokenizer: Any) -> bool:
    """Return whether no token has a digit next to anything else, so that it does not matter if digits are split off."""
    ascii_digits = set("0123456789")
    return all(len(token) == 1 for token in tokenizer.get_vocab() if ascii_digits & set(token))


def _write(path: Path, model: Any, tokenizer: Any, before_words: str) -> None:
    import gguf

    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.parent.name.strip(".") or "model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(ALL_FLOAT32)
    _add_tokenizer(writer, tokenizer, before_words, config.vocab_size)
    for name, values in named_tensors(model):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Any, before_words: str, size: int) -> None:
    known: Any = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in known["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before_words)
    # A model may have places for more tokens than its tokenizer has.
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([added.get(n, NORMAL if n in tokens else USER_DEFINED) for n in range(size)])
    merges = known["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if isinstance(number, int):
            add(number)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def named_tensors(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a Llama by their names in the format, float32."""
    config, state = model.config, model.state_dict()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    yield "token_embd.weight", _array(state["model.embed_tokens.weight"])
    yield "output_norm.weight", _array(state["model.norm.weight"])
    if not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]):
        yield "output.weight", _array(state["lm_head.weight"])
    for block in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            weight = state[f"model.layers.{block}.{theirs}.weight"]
            yield f"blk.{block}.{ours}.weight", _array(interleaved(weight, heads[ours]) if ours in heads else weight)


def interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Return the rows of queries or keys [heads * d, D] in the order of llama.cpp, which rotates pairs that are
    neighbours.

    Transformers rotates row i of a head together with row i + d / 2.
    """
    return weight.view(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _compared(trained: TrainedModel, merged: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Read the file back, and compare what it says with the merged model."""
    batches = probes(trained)
    read, again = open_gguf(folder / FILE)
    found = require(difference(answers(read, batches), answers(merged, batches)), REORDERED, "GGUF file")
    ids, expected = (one(SAMPLE, add_special_tokens=False)["input_ids"] for one in (again, tokenizer))
    if ids != expected:
        raise RunError("the exported GGUF file splits texts into other tokens than the run's; nothing was written")
    return found
