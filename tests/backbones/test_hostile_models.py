"""Models made to harm the person who loads them: none of their code runs, and none is larger than its file."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file

from fftmoe import MoeAdapterConfig, attach_adapter, load_backbone
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import load_adapter, load_image_processor, load_tokenizer, trust
from fftmoe.backbones.lora import lora_config
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.finished import load_run
from fftmoe.setup.model import build_model
from hostile import BOMBS, Code, every_bomb, lay_canary, refused, say
from models import tiny_bert


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_canary(tmp_path, monkeypatch)


# A saved adapter


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Path:
    model = attach_adapter(tiny_bert(), MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=1, shared_rank=2))
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    model = tiny_bert()
    attach_adapter(model, lora_config(2, 2.0, target_names(model, [1]))).save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora"


ADAPTERS: dict[str, dict[str, Any]] = {
    "a module": {"megatron_config": {"a": 1}, "megatron_core": "evil"},
    "only a module": {"megatron_core": "evil"},
    "another tuner": {"peft_type": "PREFIX_TUNING"},
    "no tuner": {"peft_type": ["LORA"]},
    "a way to begin": {"init_lora_weights": "pissa"},
    "a quantised one": {"loftq_config": {"loftq_bits": 4}},
    "an unknown word": {"auto_map": {"a": "evil.Evil"}},
    "a slow pattern": {"target_modules": "(a+)+$"},
    "slow patterns": {"target_modules": ["(.*)*x"]},
    "a slow rank": {"rank_pattern": {"(a|a)*b": 2}},
    "a huge rank": {"r": 10**12},
    "a rank of text": {"r": "2"},
    "a huge rank of one": {"rank_pattern": {"bert": 10**12}},
    "layers again": {"layer_replication": [[0, 10**9]]},
}
POOLS: dict[str, dict[str, Any]] = {
    "a huge pool": {"num_experts": 10**12},
    "huge experts": {"expert_dim": 10**12},
    "a huge shared one": {"shared_dim": 10**12},
    "a huge shared rank": {"shared_rank": 10**12},
    "a slow pattern": {"target_modules": "(a+)+$"},
    "an unknown word": {"parent_library": "evil"},
    "other shapes": {"num_experts": 4, "expert_dim": 3},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_lora_that_asks_for_more_than_ours(lora_folder: Path, canary: Path, kind: str):
    load_adapter(tiny_bert(), lora_folder)
    say(lora_folder / "adapter_config.json", **ADAPTERS[kind])
    refused(lambda: load_adapter(tiny_bert(), lora_folder), "damaged, or was not saved by fftmoe", InputError)
    assert not canary.exists()


@pytest.mark.parametrize("kind", POOLS)
def test_a_mixture_that_asks_for_more_than_ours(adapter_folder: Path, canary: Path, kind: str):
    load_adapter(tiny_bert(), adapter_folder)
    say(adapter_folder / "adapter_config.json", **POOLS[kind])
    refused(lambda: load_adapter(tiny_bert(), adapter_folder), "damaged, or was not saved by fftmoe", InputError)
    assert not canary.exists()


def test_a_pickled_adapter_is_not_opened(adapter_folder: Path, canary: Path):
    (adapter_folder / "adapter_model.safetensors").unlink()
    (adapter_folder / "adapter_model.bin").write_bytes(pickle.dumps(Code(f"touch {canary}")))
    refused(lambda: load_adapter(tiny_bert(), adapter_folder), "has no adapter_model.safetensors", InputError)
    assert not canary.exists()


@every_bomb
def test_an_adapter_whose_weights_are_a_bomb(adapter_folder: Path, bomb: str):
    (adapter_folder / "adapter_model.safetensors").write_bytes(BOMBS[bomb])
    refused(lambda: load_adapter(tiny_bert(), adapter_folder), "cannot load the adapter", InputError)


def test_a_run_from_elsewhere_runs_nothing(tmp_path: Path, adapter_folder: Path, recipe_file: Path, canary: Path):
    """`fftmoe predict` and `evaluate` on a folder that somebody handed over."""
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(recipe_file.read_text())
    (adapter_folder / "labels.json").write_text('{"labels": ["a", "b", "c"]}')
    say(adapter_folder / "adapter_config.json", megatron_core="evil")
    refused(lambda: load_run(tmp_path), "megatron_core='evil'", InputError)
    assert not canary.exists()


# A backbone

CODE = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
CONFIGS: dict[str, dict[str, Any]] = {
    "code": {"auto_map": CODE},
    "code of another kind": {"auto_map": CODE, "model_type": "evil"},
    "code in a part": {"text_config": {"auto_map": CODE}},
    "code of a hub": {"auto_map": {"AutoModel": "someone/evil--evil.Evil"}},
    "a kernel": {"attn_implementation": "someone/evil"},
    "a custom kernel": {"_attn_implementation": "someone/evil:fn"},
    "a kernel inside": {"_attn_implementation_internal": "flash_attention_2"},
    "a kernel for experts": {"experts_implementation": "someone/evil"},
    "kernels": {"use_kernels": True},
    "a quantiser": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "a quantiser by name": {
        "quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "os"}}}
    },
    "other weights": {"transformers_weights": "../other/model.safetensors"},
    "weights with code": {"transformers_weights": "adapter_model.bin"},
    "a way to write": {"custom_generate": "evil"},
    "a pipeline": {"custom_pipelines": {"a": {"impl": "evil.Evil"}}},
    "endless blocks": {"num_hidden_layers": 10**9},
    "many blocks": {"num_hidden_layers": 3000},
    "a huge vocabulary": {"vocab_size": 10**9},
    "a huge model": {"hidden_size": 10**6},
    "huge networks": {"intermediate_size": 10**9},
    "endless positions": {"max_position_embeddings": 10**10},
    "no heads": {"num_attention_heads": 0},
    "text for a number": {"vocab_size": "x"},
    "an unknown function": {"hidden_act": "__import__('os').system('touch CANARY')"},
    "no family": {"model_type": 7},
    "an unknown family": {"model_type": "evil"},
}


@pytest.fixture
def copy(backbone_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(backbone_folder, tmp_path / "copy")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_backbone_runs_no_code_and_is_no_larger_than_its_file(copy: Path, canary: Path, kind: str):
    shutil.copy(canary.parent / "modules" / "evil.py", copy)
    values = json.loads(json.dumps(CONFIGS[kind]).replace("CANARY", str(canary)))
    say(copy / "config.json", **values)
    refused(lambda: load_backbone(str(copy), num_labels=2), "copy", InputError)
    assert not canary.exists()


@pytest.mark.parametrize("text", ["", "[]", "[" * 10**5, '{"a": NaN}', '{"a": 1, "a": 2}', "\0", "x" * 2**21])
def test_what_is_not_a_configuration_is_refused(copy: Path, text: str):
    (copy / "config.json").write_text(text)
    refused(lambda: load_backbone(str(copy), num_labels=2), "cannot read config.json", InputError)
    refused(lambda: load_tokenizer(str(copy)), "cannot read config.json", InputError)


@every_bomb
def test_a_backbone_whose_weights_are_a_bomb(copy: Path, bomb: str):
    (copy / "model.safetensors").write_bytes(BOMBS[bomb])
    refused(lambda: load_backbone(str(copy), num_labels=2), r"cannot be read|belongs to another model", InputError)


def test_a_pickled_backbone_is_not_opened(copy: Path, canary: Path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Code(f"touch {canary}")))
    refused(lambda: load_backbone(str(copy), num_labels=2), "can contain code and are not read", InputError)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../elsewhere/model.safetensors", "/etc/passwd", "pytorch_model.bin", "a/../b.safetensors"]
)
def test_weights_are_not_read_from_elsewhere(copy: Path, name: str):
    weights = load_file(copy / "model.safetensors")
    shutil.move(copy / "model.safetensors", copy / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: load_backbone(str(copy), num_labels=2), "names files that are not", InputError)
    index["weight_map"] = dict.fromkeys(weights, "part.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    load_backbone(str(copy), num_labels=2)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "{"]
)
def test_what_is_not_a_list_of_weights_is_refused(copy: Path, text: str):
    shutil.move(copy / "model.safetensors", copy / "part.safetensors")
    (copy / "model.safetensors.index.json").write_text(text)
    refused(lambda: load_backbone(str(copy), num_labels=2), "index.json in model folder .* (cannot|names)", InputError)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json", "pytorch_model.bin"}, r"has no model\.safetensors; weights in other formats"),
        ({"config.json", "model.safetensors", "adapter_config.json"}, "is an adapter; name the whole model"),
    ],
)
def test_a_model_of_the_hub_is_not_exchanged_for_another(
    copy: Path, monkeypatch: pytest.MonkeyPatch, files: set[str], words: str
):
    """transformers would load what an adapter names, or what a service made of pickled weights."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr("fftmoe.backbones.find.why_unreachable", lambda: None)
    monkeypatch.setattr(
        trust, "cached_file", lambda _, name, **__: str(copy / "config.json") if name in files else None
    )
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    with pytest.raises(InputError, match=words):
        load_backbone("someone/model", num_labels=2)


def test_another_model_is_not_taken_for_this_one(copy: Path, backbone_folder: Path):
    """transformers follows an adapter to the model that it names."""
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(backbone_folder)}))
    refused(lambda: load_backbone(str(copy), num_labels=2), "is the folder of an adapter", InputError)


TOKENIZERS: dict[str, dict[str, Any]] = {
    "code": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
    "code by name": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
    "code of a hub": {"auto_map": {"AutoTokenizer": ["someone/evil--evil.Evil", None]}},
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_runs_no_code(copy: Path, canary: Path, kind: str):
    shutil.copy(canary.parent / "modules" / "evil.py", copy)
    say(copy / "tokenizer_config.json", **TOKENIZERS[kind])
    refused(lambda: load_tokenizer(str(copy)), "tokenizer_config.json of the model .* has auto_map", InputError)
    assert not canary.exists()


@pytest.mark.parametrize("text", ["{}", '{"a":' * 10**5, "[]", "", '{"version": "1.0", "model": {"type": "Evil"}}'])
def test_what_is_not_a_tokenizer_is_refused(copy: Path, text: str):
    (copy / "tokenizer.json").write_text(text)
    refused(lambda: load_tokenizer(str(copy)), "cannot load the tokenizer", InputError)


def test_words_of_a_tokenizer_come_from_its_own_folder(copy: Path, tmp_path: Path):
    """Paths in its settings come from the author, but would name files of the person who loads the model."""
    own = len(load_tokenizer(str(copy)))
    (tmp_path / "vocab.txt").write_text("\n".join(f"w{n}" for n in range(99)))
    say(copy / "tokenizer_config.json", vocab_file=str(tmp_path / "vocab.txt"), tokenizer_file="/etc/passwd")
    assert len(load_tokenizer(str(copy))) == own


def test_a_template_of_a_tokenizer_is_not_rendered(copy: Path, canary: Path):
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    say(copy / "tokenizer_config.json", chat_template=template)
    load_tokenizer(str(copy))("ash bay")
    assert not canary.exists()


@pytest.mark.parametrize(
    "size", [{"height": 10**6, "width": 10**6}, {"height": -1, "width": 4}, {"height": "4", "width": 4}]
)
def test_an_image_processor_makes_no_huge_images(tmp_path: Path, size: dict[str, Any]):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "ViTImageProcessor", "size": size, "image_mean": [0] * 3, "image_std": [1] * 3}
        )
    )
    with pytest.raises(InputError, match="image processor of"):
        load_image_processor(str(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"num_experts": 10**15}, {"expert_dim": 10**15}, {"shared_dim": 10**15}, {"shared_rank": 10**15}]
)
def test_a_recipe_from_elsewhere_asks_for_no_more_than_the_machine_has(
    recipe_values: dict[str, Any], changes: dict[str, int]
):
    values = {**recipe_values, "adapter": {**recipe_values["adapter"], **changes}}
    refused(lambda: build_model(parse_recipe(values, "sent"), ["a", "b"]), "GiB, and this machine has", InputError)
