"""A client's part of a round on a tiny model, for the tests of the methods."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone, logits
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import update_client
from fftmoe.data import TokenizedText, training_batches
from fftmoe.head import make_head
from fftmoe.methods.base import Method
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flame import Flame
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    ServerState,
    Tensors,
    Training,
    pack_plan,
    pack_update,
    unpack_plan,
    unpack_update,
)
from fftmoe.rng import generator
from fftmoe.server.plan import plan_round
from models import token_examples

NUM_EXAMPLES = 23


@cache
def examples() -> TokenizedText:
    """The examples of the clients."""
    return token_examples(NUM_EXAMPLES, seed=1)


def plan_client(
    method: Method, state: ServerState, client_id: int, budgets: Mapping[int, Budget], training: Training
) -> ClientPlan:
    """The client's plan in the round after `state`; it is the only client of the round."""
    return plan_round(method, state, state.round + 1, [client_id], budgets, training, seed=5).clients[0]


def exchange(
    model: Any,
    method: Method,
    state: ServerState,
    plan: ClientPlan,
    kept: Tensors | None = None,
    rows: np.ndarray | None = None,
) -> tuple[ClientUpdate, Tensors]:
    """One client trains (on all examples unless `rows` says which); both messages are packed and unpacked.

    Returns:
        the update as it arrives, and what the client keeps.
    """
    plan, tensors = unpack_plan(pack_plan(plan, method.download(state, plan)))
    rows = np.arange(NUM_EXAMPLES) if rows is None else rows
    update, left = update_client(
        model, method, make_head("averaged"), plan, tensors, dict(kept or {}), examples(), rows
    )
    arrived = unpack_update(pack_update(update))
    assert arrived.tensors.keys() == update.tensors.keys()
    assert all(torch.equal(arrived.tensors[name], tensor) for name, tensor in update.tensors.items())
    assert replace(arrived, tensors={}) == replace(update, tensors={})
    return arrived, left


def answers(model: Any) -> torch.Tensor:
    """The model's logits for the first five examples."""
    return logits(model, examples().batch(range(5))).detach()


def tiny_moe(folder: Path, **config: Any) -> Any:
    """The tiny BERT with experts trained a little: untrained ones add nothing and give the router no gradient."""
    model = attach_adapter(load_backbone(str(folder), num_labels=3), MoeAdapterConfig(**config))
    for block, moe in adapter.blocks(model).items():
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down"))
    return model


def count_choices(model: Any, method: FftMoe | Flame, state: ServerState, plan: ClientPlan) -> dict[int, list[int]]:
    """How often the router chooses each expert of each block for a token that is not padding.

    This replays the client's training, and counts at every step.
    """
    counts = {block: [0] * len(ids) for block, ids in plan.experts.items()}
    training, source = plan.training, generator(plan.seed, "batches")
    batches = training_batches(
        np.arange(NUM_EXAMPLES), training.batch_size, source, steps=training.local_steps, lengths=examples().lengths
    )
    with method.session(model, plan, method.download(state, plan), {}) as session:
        optimizers = make_optimizers(session.parameters, training)
        for rows in batches:
            batch = examples().batch(rows)
            loss = make_head("averaged").loss(logits(model, batch), batch["labels"])
            mask = batch["attention_mask"].flatten().bool()
            for block, routing in session.read_routing().items():
                for expert in routing.expert_ids_TK[mask].flatten().tolist():
                    counts[block][expert] += 1
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return counts
