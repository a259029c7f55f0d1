"""Three clients of different budgets on the tiny BERT, for tests of methods with experts, with LoRA or with neither."""

import dataclasses
from typing import Any

from federation import exchange, plan_client
from fftmoe.methods.base import Method
from fftmoe.methods.budget import ExpertShape
from fftmoe.records import Budget, ClientPlan, ClientUpdate, ServerState, Tensors, Training
from models import HIDDEN

M, H = 5, 3  # experts and their units, as in the fixture `moe_model`
BLOCKS = (1, 2)
SMALL, LARGE = Budget("small", 1, 2, BLOCKS, rank=2), Budget("large", 3, 5, BLOCKS, rank=3)
NARROW = Budget("narrow", 2, 3, (2,), rank=3)
BUDGETS = {0: SMALL, 1: LARGE, 2: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.02, head_learning_rate=0.5, local_steps=3)
SHAPE = ExpertShape(HIDDEN, H)


def plan_of(method: Method, state: ServerState, client_id: int, **changes: Any) -> ClientPlan:
    """The plan of the only client in the round after `state`; `changes` are made to its training."""
    return plan_client(method, state, client_id, BUDGETS, dataclasses.replace(TRAINING, **changes))


def train(
    model: Any, method: Method, state: ServerState, client_id: int, client_state: Tensors | None = None, **changes: Any
) -> tuple[ClientUpdate, Tensors]:
    """One client trains on all examples; returns the update as it arrives, and what the client keeps."""
    return exchange(model, method, state, plan_of(method, state, client_id, **changes), client_state)
