"""What the tests of the closed-form head share: rows, references by other means, and a tiny BERT in an exchange.

Sizes: F features, C classes; the tiny BERT has HIDDEN features, or LIFTED random ones.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone
from fftmoe.client.runtime import ClientRuntime
from fftmoe.data import TokenizedText, make_partition
from fftmoe.engines.base import Handler
from fftmoe.head import make_head
from fftmoe.methods.base import Method
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import (
    Budget,
    ClientUpdate,
    ServerState,
    Tensors,
    Training,
    pack_plan,
    unpack_update,
)
from fftmoe.rng import generator
from fftmoe.server.solve import plan_sums
from models import HIDDEN, token_examples

F, C = 7, 5
N = 43
seeds = st.integers(0, 2**31)

M, H = 5, 3
BLOCKS = (1, 2)  # of the tiny BERT's three
LIFTED = 31
NUM_LABELS = 3
SMALL, LARGE = Budget("small", 1, 2, BLOCKS, rank=2), Budget("large", 2, M, BLOCKS, rank=2)
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, train_head=False, local_steps=2)
KINDS = {"linear": 0, "fourier": LIFTED}


def drawn(num_rows: int, seed: int, num_features: int = F) -> tuple[Tensor, Tensor]:
    """Random features, float32, and labels that depend on them and on chance."""
    source = generator(seed, "rows")
    x = torch.randn(num_rows, num_features, generator=source)
    scores = 0.7 * x @ torch.randn(num_features, C, generator=source) + torch.randn(num_rows, C, generator=source)
    return x, scores.argmax(1)


def augmented(x: Tensor) -> Tensor:
    """Rows [x, 1], float64."""
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


def onehot(labels: Tensor, num_labels: int = C) -> Tensor:
    return torch.eye(num_labels, dtype=torch.float64)[labels]


def mean_eigenvalue(x: Tensor) -> float:
    return float(augmented(x).square().sum()) / (x.shape[1] + 1)


def ridge_by_lstsq(x: Tensor, labels: Tensor, strength: float, num_labels: int = C) -> tuple[Tensor, Tensor]:
    """Ridge regression as least squares: below the rows, sqrt(rho) times the identity with targets 0."""
    rows, rho = augmented(x), strength * mean_eigenvalue(x)
    size = rows.shape[1]
    below = rho**0.5 * torch.eye(size, dtype=torch.float64)
    targets = torch.cat([onehot(labels, num_labels), torch.zeros(size, num_labels, dtype=torch.float64)])
    solution = torch.linalg.lstsq(torch.cat([rows, below]), targets).solution
    return solution[:-1].T.float(), solution[-1].float()


def gcv_by_hat_matrix(x: Tensor, labels: Tensor, strength: float, num_labels: int = C) -> float:
    """Generalised cross-validation by its definition: RSS / n / (1 - tr H / n)^2 with the hat matrix H."""
    rows, targets, n = augmented(x), onehot(labels, num_labels), len(x)
    ridge = rows.T @ rows + strength * mean_eigenvalue(x) * torch.eye(rows.shape[1], dtype=torch.float64)
    hat = rows @ torch.linalg.inv(ridge) @ rows.T
    return float((targets - hat @ targets).square().sum() / n / (1 - hat.trace() / n) ** 2)


@cache
def examples() -> TokenizedText:
    """Labels that follow from the second token, which the features determine in part."""
    texts = token_examples(211, seed=1)
    return dataclasses.replace(texts, labels=texts.input_ids[texts.offsets[:-1] + 1].long() % NUM_LABELS)


def moe_model(folder: Path, lifted: int, seed: int = 0) -> Any:
    """A tiny BERT whose experts are random, so that its features depend on which experts are used."""
    model = attach_adapter(
        load_backbone(str(folder), num_labels=NUM_LABELS, fourier_features=lifted, seed=seed),
        MoeAdapterConfig(num_experts=M, expert_dim=H, shared_dim=2, top_k=1, blocks="last-2"),
    )
    for block, moe in adapter.blocks(model).items():
        assert moe.shared_down is not None
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down"))
        torch.nn.init.normal_(moe.shared_down, std=0.1, generator=generator(block, "shared"))
    return model


def fft_moe(num_clients: int) -> FftMoe:
    """The method for clients whose own budget is the small one."""
    return FftMoe(dict.fromkeys(range(num_clients), SMALL), ExpertShape(HIDDEN, H, 2), num_experts=M)


class States:
    """The states that clients keep, in memory."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensors] = {}

    def load(self, client_id: int, before: int) -> Tensors:
        return self.kept.get(client_id, {})

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        self.kept[client_id] = state


def runtime(
    model: Any,
    method: Method,
    partition: Sequence[np.ndarray],
    states: States | None = None,
    measure: Callable[..., dict[str, float]] = lambda *_, **__: {},
) -> ClientRuntime:
    head, states = make_head("closed-form"), states or States()
    return ClientRuntime(model, method, head, NUM_LABELS, examples(), partition, states, measure, lambda *_: {})


def exchanged(handler: Handler, method: Method, state: ServerState, num_clients: int) -> list[ClientUpdate]:
    """The feature statistics of all clients, after they were messages."""
    plan = plan_sums(state, range(num_clients), LARGE, TRAINING, seed=5)
    replies = [handler([pack_plan(client, method.download(state, client))])[0] for client in plan.clients]
    updates = [unpack_update(reply) for reply in replies]
    assert [update.client_id for update in updates] == list(range(num_clients))
    return updates


def partitioned(kind: str) -> list[np.ndarray]:
    labels = examples().labels.numpy()
    if kind == "one client":
        return [np.arange(len(labels))]
    if kind == "one class per client":
        return [np.flatnonzero(labels == label) for label in range(NUM_LABELS)]
    return list(make_partition("iid", labels=labels, num_clients=7, seed=1).indices)
