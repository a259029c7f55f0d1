"""One client's part of a round on a tiny model, for the tests of the methods."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from fftmoe.client.update import update_client
from fftmoe.data import TokenizedText
from fftmoe.head import make_head
from fftmoe.methods.base import Method
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
