"""Describes a run as this package sees it: the values that its costs depend on."""

from dataclasses import dataclass

import numpy as np

from fftmoe.head import ONE_LABEL, Answers
from fftmoe.methods.base import Method
from fftmoe.methods.budget import Budgets, ExpertShape
from fftmoe.records import Budget, ServerState, Training, names


@dataclass(frozen=True)
class Workload:
    """States what every client of a run holds, trains and sends, before the first round.

    Attributes:
        state: the global model that `method.init` made.
        tiers: the distinct budgets. budgets: client_id -> its tier.
        largest: the tier whose view of the global model the run reports.
        shape: of one expert. num_experts: in the pool of a block.
        has_experts: whether the model carries the adapter of experts, and not LoRA.
        sizes: the training examples of each client, integers [C].
        num_examples: the examples that the clients share out, over all clients.
        answers: what a closed-form head is fitted to.
    """

    method: Method
    state: ServerState
    tiers: tuple[Budget, ...]
    budgets: Budgets
    largest: Budget
    shape: ExpertShape
    num_experts: int
    has_experts: bool
    training: Training
    sizes: np.ndarray
    num_examples: int
    rounds: int
    clients_per_round: int
    seed: int
    answers: Answers = ONE_LABEL

    @property
    def num_clients(self) -> int:
        """Return the size of the population."""
        return len(self.budgets)

    @property
    def head_parameters(self) -> int:
        """Return how many parameters of the head the server sends."""
        return sum(t.numel() for name, t in self.state.tensors.items() if names.is_head(name))
