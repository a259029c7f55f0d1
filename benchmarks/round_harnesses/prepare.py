"""Writes the folder that all harnesses read: a random backbone, texts, our recipe, and the batches that follow from it.

Ours reads the recipe and makes the batches itself, as in any run; the others are given the same ones.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
import yaml

from fftmoe.config import load_recipe
from fftmoe.data import TokenizedText, training_batches
from fftmoe.rng import generator, numpy_generator
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment

from .task import INITIAL, rows_name

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TEST_EXAMPLES = 20


@dataclass(frozen=True)
class Setting:
    """The sizes of the fit; as they stand here, 99,206 parameters are trained.

    Attributes:
        words: of every text, which has two tokens more.
        examples: of all clients together.
    """

    clients: int = 20
    rounds: int = 32
    examples: int = 800
    batch_size: int = 8
    words: int = 6
    vocabulary: int = 200
    hidden: int = 64
    heads: int = 4
    intermediate: int = 128
    blocks: int = 2
    experts: int = 4
    expert_dim: int = 96
    top_k: int = 2
    labels: int = 6
    learning_rate: float = 1e-3
    seed: int = 0


def prepare(folder: Path, setting: Setting, overrides: Sequence[str] = ()) -> Experiment:
    """Write the task into `folder`; the experiment as ours composes it. `overrides`: `section.key=value` each."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_backbone(folder / "backbone", setting)
    _write_texts(folder / "data", setting)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder, setting), sort_keys=False))
    changed = load_recipe(str(folder / "recipe.yaml"), overrides)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(changed.model_dump(mode="json"), sort_keys=False))
    experiment = compose(changed)
    stored = {INITIAL + name: t for name, t in experiment.method.init(experiment.model).tensors.items()}
    (folder / "task.json").write_text(json.dumps(_values(experiment, setting), indent=1) + "\n")
    safetensors.torch.save_file(stored | _examples(experiment) | _rows(experiment), folder / "task.safetensors")
    return experiment


def recipe(folder: Path, setting: Setting) -> dict[str, Any]:
    """A run of ours on this task. Nothing is measured between the first and the last round."""
    return {
        "name": "round-overhead",
        "seed": setting.seed,
        "backbone": {"model": str(folder / "backbone")},
        "data": {"source": str(folder / "data"), "max_length": setting.words + 2, "validation": "off"},
        "partition": {"kind": "iid", "num_clients": setting.clients},
        "adapter": {
            "num_experts": setting.experts,
            "expert_dim": setting.expert_dim,
            "shared_rank": 0,
            "scale": 1.0,
            "blocks": "all",
            # The only target that a client can follow without knowing the others' load.
            "balance": "switch",
        },
        "head": {"kind": "averaged", "learning_rate": setting.learning_rate, "optimizer": "adamw"},
        "budgets": [{"name": "only", "fraction": 1.0, "top_k": setting.top_k, "experts": setting.experts}],
        "federation": {
            "rounds": setting.rounds,
            "clients_per_round": setting.clients,
            "batch_size": setting.batch_size,
            "local_steps": 1,
            "learning_rate": setting.learning_rate,
            "schedule": "constant",
            "aggregation": "fedavg",
            "server_optimizer": "sgd",
        },
        "engine": {"workers": 1, "prefix_cache": "off"},
        "evaluation": {"every": setting.rounds},
        "trackers": [],
    }


def _values(experiment: Experiment, setting: Setting) -> dict[str, Any]:
    settings = experiment.recipe.adapter
    return {
        "setting": asdict(setting),
        "rounds": setting.rounds,
        "weights": experiment.partition.sizes.tolist(),
        "learning_rate": setting.learning_rate,
        "labels": len(experiment.label_names),
        "balance_strength": settings.balance_strength,
        "z_strength": settings.z_strength,
        "adapter": {
            "num_experts": setting.experts,
            "expert_dim": setting.expert_dim,
            "top_k": setting.top_k,
            "blocks": "all",
            "activation": settings.activation,
            "gates": settings.gates,
            "scale": settings.scale,
            "compute": settings.compute,
        },
    }


def _examples(experiment: Experiment) -> dict[str, torch.Tensor]:
    """All texts as one batch: they are equally long, so none is padded."""
    assert isinstance(experiment.train, TokenizedText)
    return experiment.train.batch(torch.arange(len(experiment.train)))


def _rows(experiment: Experiment) -> dict[str, torch.Tensor]:
    """The rows of each client's batch in each round, drawn as `fftmoe.client.update` draws them."""
    method, training, seed = experiment.method, experiment.training, experiment.recipe.seed
    state = method.init(experiment.model)
    rows = {}
    for t in range(1, experiment.recipe.federation.rounds + 1):
        cohort = choose_cohort(experiment.num_clients, experiment.recipe.federation.clients_per_round, seed, t)
        plan = plan_round(method, state, t, cohort, experiment.budgets, training, seed)
        for client in plan.clients:
            (batch,) = training_batches(
                experiment.partition.indices[client.client_id],
                training.batch_size,
                generator(client.seed, "batches"),
                steps=1,
                lengths=experiment.train.lengths,
            )
            rows[rows_name(t, client.client_id)] = batch.clone()
    return rows


def _write_backbone(folder: Path, setting: Setting) -> None:
    config = transformers.BertConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        num_hidden_layers=setting.blocks,
        num_attention_heads=setting.heads,
        intermediate_size=setting.intermediate,
        max_position_embeddings=setting.words + 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = _words(setting)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=setting.words + 2,
    ).save_pretrained(folder)


def _write_texts(folder: Path, setting: Setting) -> None:
    """Texts of random words; the label is a function of the first, so that there is something to learn."""
    folder.mkdir(exist_ok=True)
    words = _words(setting)
    for split, size in (("train", setting.examples), ("test", TEST_EXAMPLES)):
        random = numpy_generator(setting.seed, split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for row in range(size):
                drawn = random.choice(len(words), setting.words).tolist()
                # The first rows go through all labels, so that each of them occurs.
                drawn[0] = row if row < setting.labels else drawn[0]
                writer.writerow((" ".join(words[i] for i in drawn), f"label-{drawn[0] % setting.labels}"))


def _words(setting: Setting) -> list[str]:
    return [f"w{i}" for i in range(setting.vocabulary - len(SPECIAL))]
