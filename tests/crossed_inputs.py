"""The smallest backbones and data of every task, and parts of one's own, for tests that cross features."""

import copy
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fftmoe.data.roles import LANGUAGE_TASKS
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flora import FLora
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.tasks import TASKS, Classification
from language import CHAT, tiny_language_tokenizer
from models import tiny_tokenizer

OWN_TASK = "own"  # a row of the table that a script has replaced, as examples/own_task.py does
OF_OWN_TASK = "sequence-classification"
WORDS = ("ash", "bay", "once", "say")
SHAPE: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
COLOURS = ("blue", "green", "red")
ROWS = {"train": 43, "test": 13}


class OwnMethod(FftMoe):
    """A method of one's own, which is FFT-MoE by another name."""


class OwnFLora(FLora):
    """A method of one's own that can do little: its server does not average, and its clients cannot round."""


OWN_METHODS: dict[str, Any] = {"own": OwnMethod, "own-flora": OwnFLora, "own-wrapper": LocalOnly}
"""Two classes, and a function of FFT-MoE's method, by the names of the plug-ins."""


@dataclass
class Shortened(WeightedSum):
    """An aggregator of one's own: the weighted mean."""


def in_turn(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    """A partition of one's own: one example to each client in turn."""
    return np.arange(len(labels)) % num_clients


class WrongShare(Classification):
    """A task of one's own whose metric has an own name, and is better when it is lower."""

    metric = "wrong_share"
    higher_is_better = False

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        [right] = super().metrics(sums).values()
        return {self.metric: 1 - right}


@contextmanager
def own_task_row(task: str) -> Any:
    """While it lasts, the table of tasks has the own row, if the combination uses it."""
    with pytest.MonkeyPatch.context() as patch:
        if task == OWN_TASK:
            patch.setitem(TASKS, OF_OWN_TASK, WrongShare)
        yield


def install_plugins(folder: Path) -> None:
    """Announce the parts above as an installed package does, so that every process finds them."""
    info = folder / "crossed_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crossed-parts\nVersion: 1.0\n")
    kinds = {"methods": OWN_METHODS, "aggregators": {"own": Shortened}, "partitioners": {"own": in_turn}}
    lines = [
        line
        for kind, parts in kinds.items()
        for line in (f"[fftmoe.{kind}]", *(f"{n} = {part.__module__}:{part.__name__}" for n, part in parts.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def text_model(folder: Path) -> Path:
    _save(transformers.BertModel, transformers.BertConfig(vocab_size=31, max_position_embeddings=17, **SHAPE), folder)
    tiny_tokenizer((*WORDS, *COLOURS)).save_pretrained(folder)
    return folder


def image_model(folder: Path) -> Path:
    _save(transformers.ViTModel, transformers.ViTConfig(image_size=8, patch_size=4, **SHAPE), folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def language_model(folder: Path) -> Path:
    tokens: dict[str, Any] = {"vocab_size": 17, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.LlamaConfig(max_position_embeddings=37, num_key_value_heads=1, head_dim=8, **SHAPE, **tokens)
    _save(transformers.LlamaForCausalLM, config, folder)
    tiny_language_tokenizer(CHAT).save_pretrained(folder)
    return folder


def _save(model: Any, config: Any, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model(config).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    """Rows with the columns of every task on texts: a colour among words."""
    for split, size in ROWS.items():
        lines = []
        for row in range(size):
            colour, word = COLOURS[row % 3], WORDS[row % 4]
            words = [word, colour, *["say"] * (row % 2)]
            facts = {
                "text": " ".join(words),
                "label": colour,
                "author": f"author-{row % 3}",
                "tokens": words,
                "tags": [w if w in COLOURS else "O" for w in words],
                "colours": [colour] * (row % 5 > 0),
                "size": float(row % 7),
                "share": 1000.0 * (row % 3),
                "prompt": f"say {WORDS[row % 2]}",
                "completion": WORDS[row % 2],
                "chosen": WORDS[row % 2],
                "rejected": WORDS[2 + row % 2],
            }
            lines.append(json.dumps(facts) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


def write_images(folder: Path) -> None:
    """Pictures of three colours as files, and a table of their paths."""
    for split, size in ROWS.items():
        lines = []
        for row in range(size):
            pixels = np.random.default_rng(row).integers(0, 90, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, row % 3] += 90
            name = f"{split}-{row}.png"
            Image.fromarray(pixels).save(folder / name)
            facts = {"image": name, "label": COLOURS[row % 3], "author": f"author-{row % 3}"}
            lines.append(json.dumps(facts) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


COLUMNS: dict[str, dict[str, Any]] = {
    "causal-lm": {"prompt": "prompt", "completion": "completion"},
    "preference": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "multi-label-classification": {"label": "colours"},
    "regression": {"targets": ["size", "share"]},
}
"""The data section of tasks that need more than its defaults."""
DECLARED = {"token-classification": ["O", *COLOURS]}
"""The labels of tasks whose labels are not the colours."""


@dataclass(frozen=True)
class Inputs:
    """The folders of backbones and data."""

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> "Inputs":
        for make, name in ((text_model, "text"), (image_model, "image"), (language_model, "language")):
            make(folder / f"{name}-model")
        for write, name in ((write_texts, "texts"), (write_images, "images")):
            (folder / name).mkdir()
            write(folder / name)
        install_plugins(folder / "installed")
        return cls(folder)

    def recipe(self, task: str) -> dict[str, Any]:
        """Three clients in two tiers, two rounds of two."""
        kind = {"image-classification": "image", **dict.fromkeys(LANGUAGE_TASKS, "language")}.get(task, "text")
        source = self.folder / ("images" if kind == "image" else "texts")
        return {
            "name": "crossed",
            "seed": 3,
            "backbone": {"model": str(self.folder / f"{kind}-model"), "task": task},
            "data": {
                "source": str(source),
                "max_length": 11,
                "validation": "off",
                **copy.deepcopy(COLUMNS.get(task, {})),
            },
            "adapter": {"num_experts": 3, "expert_dim": 8},
            "federation": {"rounds": 2, "clients_per_round": 3, "batch_size": 3, "learning_rate": 0.01},
            "engine": {"precision": "float32"},
            "evaluation": {"baselines": "off"},
            "trackers": [],
            **({"preference": {}} if task == "preference" else {}),
        }

    def questions(self, task: str) -> list[str | None]:
        """Two inputs for `predict`, and two to which there is no answer."""
        if task == "image-classification":
            return [str(self.folder / "images" / f"test-{row}.png") for row in (0, 1)]
        return ["say ash", " ", "bay red", None]


@contextmanager
def installed(inputs: Inputs) -> Any:
    """While it lasts, the plug-ins are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(inputs.folder / "installed"))
        yield
