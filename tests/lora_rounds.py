"""Rounds of LoRA methods for their tests: on the server with random updates, and on a tiny BERT with peft's LoRA.

On the server there are two modules of prime sizes and four clients of different ranks, one of which adapts one block.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from federation import NUM_EXAMPLES, answers, exchange, plan_client
from fftmoe.backbones import attach_adapter, load_adapter, load_backbone
from fftmoe.backbones.lora import lora_config, lora_modules
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.ffa_lora import FfaLora
from fftmoe.methods.flexlora import FlexLora
from fftmoe.methods.flora import FLora
from fftmoe.methods.hetlora import HetLora
from fftmoe.methods.lora import LoraMethod
from fftmoe.records import Budget, ClientPlan, ClientUpdate, ServerState, Tensors, Training
from fftmoe.rng import generator, numpy_generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round

ONE, TWO = "layer.1.q", "layer.2.v"
MODULES = {ONE: (7, 11), TWO: (13, 5)}
BLOCKS = (1, 2)
SMALL, MEDIUM, LARGE = (Budget(f"rank {r}", 0, 0, BLOCKS, rank=r) for r in (2, 3, 5))
NARROW = Budget("narrow", 0, 0, (2,), rank=3)
BUDGETS = {0: SMALL, 1: MEDIUM, 2: LARGE, 3: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.02, head_learning_rate=0.5, local_steps=3)
SCALE = 2.5
CLASSES: tuple[type[LoraMethod], ...] = (FedIt, FfaLora, FedSaLora, HetLora, FLora, FlexLora)
every_method = pytest.mark.parametrize("kind", CLASSES)
seeds = st.integers(0, 2**31)


def state_of(method: LoraMethod) -> ServerState:
    """The method's first state, with a head and, where the server keeps factors, a B that is not zero."""
    state = method.init(nn.Module())
    source = generator(1, "state")
    nonzero = {name: torch.randn(t.shape, generator=source) for name, t in state.tensors.items() if name.endswith(".B")}
    head = torch.randn(3, 7, generator=source)
    return dataclasses.replace(state, tensors={**state.tensors, **nonzero, "head.weight": head})


def plan_of(method: LoraMethod, state: ServerState, client_id: int, training: Training = TRAINING) -> ClientPlan:
    return plan_client(method, state, client_id, method.budgets, training)


def random_update(method: LoraMethod, state: ServerState, client_id: int, seed: int = 0) -> ClientUpdate:
    """Random changes of everything that the client may send."""
    plan = plan_of(method, state, client_id)
    source, random = generator(seed, "update", client_id), numpy_generator(seed, "size", client_id)
    widest = method.widest_update(plan, method.download(state, plan))
    return dataclasses.replace(
        widest,
        num_examples=int(random.integers(1, 100)),
        tensors={name: torch.randn(t.shape, generator=source) for name, t in widest.tensors.items()},
        metrics={"loss": float(client_id)},
    )


def random_updates(method: LoraMethod, state: ServerState, seed: int = 0) -> list[ClientUpdate]:
    """A random update of every client, in the order of their ids."""
    return [random_update(method, state, client_id, seed) for client_id in BUDGETS]


def merged_round(method: LoraMethod, state: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
    """The state after the server has merged these updates."""
    plan = plan_round(method, state, state.round + 1, [], BUDGETS, TRAINING, seed=5)
    return apply_round(method, state, plan, updates)[0]


def numpy_factors(method: LoraMethod, state: ServerState, update: ClientUpdate) -> dict[str, tuple[Any, Any]]:
    """A_n and B_n of a client after its training, float64: what it started with plus its change."""
    start = method.start(state.tensors, BUDGETS[update.client_id], update.round)
    return {
        path: (
            a.double().numpy() + update.tensors[f"lora.{path}.A"].double().numpy(),
            b.double().numpy() + update.tensors[f"lora.{path}.B"].double().numpy(),
        )
        for path, (a, b) in start.items()
    }


def sum_of_products(method: LoraMethod, state: ServerState, updates: list[ClientUpdate], path: str) -> Any:
    """The sum of p_n B_n A_n over the clients that adapt the module; p_n is a client's share of the examples."""
    holders = [u for u in updates if f"lora.{path}.A" in u.tensors]
    total = sum(u.num_examples for u in holders)
    result = 0.0
    for update in holders:
        a, b = numpy_factors(method, state, update)[path]
        result = result + update.num_examples / total * b @ a
    return result


def product_of(tensors: Tensors, path: str) -> Any:
    """B A of the factors of a module, float64."""
    return (tensors[f"lora.{path}.B"].double() @ tensors[f"lora.{path}.A"].double()).numpy()


def dense_merged(tensors: Tensors, path: str) -> Tensor:
    """What FLoRA has merged into a module so far, as one matrix."""
    if f"merged.{path}.W" in tensors:
        return tensors[f"merged.{path}.W"]
    return tensors[f"merged.{path}.B"] @ tensors[f"merged.{path}.A"]


def fresh_model(folder: Path) -> Any:
    """A tiny BERT with LoRA on two modules of two blocks, made as any process would make it."""
    config = lora_config(1, SCALE, ["query", "intermediate.dense"], BLOCKS)
    return attach_adapter(load_backbone(str(folder), num_labels=3), config)


def method_on(model: Any, kind: type[LoraMethod], **fields: Any) -> Any:
    """The method for the LoRA modules of this model."""
    return kind(BUDGETS, lora_modules(model), **fields)


def train(
    model: Any,
    method: LoraMethod,
    state: ServerState,
    client_id: int,
    client_state: Tensors | None = None,
    **changes: Any,
) -> tuple[ClientUpdate, Tensors]:
    """One client trains on its half of the examples; `changes` are made to its training.

    Returns:
        the update as it arrives, and what the client keeps.
    """
    plan = plan_of(method, state, client_id, dataclasses.replace(TRAINING, **changes))
    return exchange(model, method, state, plan, client_state, np.arange(NUM_EXAMPLES)[client_id::2])


def run_round(model: Any, method: LoraMethod, state: ServerState, cohort: Iterable[int]) -> ServerState:
    """The state after a round in which these clients have trained."""
    plan = plan_round(method, state, state.round + 1, sorted(cohort), BUDGETS, TRAINING, seed=5)
    return apply_round(method, state, plan, (train(model, method, state, c)[0] for c in sorted(cohort)))[0]


def after_a_round(model: Any, kind: type[LoraMethod], **fields: Any) -> tuple[Any, ServerState]:
    """The method on this model, and its state after a round of all clients."""
    method = method_on(model, kind, **fields)
    return method, run_round(model, method, method.init(model), BUDGETS)


def check_saved(model: Any, backbone_folder: Path, folder: Path) -> None:
    """Check that a saved adapter opens on a new backbone, and gives the same answers there."""
    expected = answers(model)
    model.save_pretrained(folder)
    opened = load_adapter(load_backbone(str(backbone_folder), num_labels=3), folder)
    torch.testing.assert_close(answers(opened), expected)
