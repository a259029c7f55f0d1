"""Describes the clients of a run as the server sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fftmoe.methods.budget import Budgets, largest_tier
from fftmoe.records import Budget
from fftmoe.server.cohort import choose_cohort


@dataclass(frozen=True)
class Population:
    """Holds the clients of a run.

    Attributes:
        budgets: client_id -> budget. tiers: the distinct budgets, in the recipe's order.
        label_shares: from client ids to the share of each stratum in their training examples, float64 [clients,
            strata]; None where the server must not know: clients are elsewhere, or have differential privacy.
        names: of the clients, where the data gives them any and they may be written down.
    """

    budgets: Budgets
    tiers: tuple[Budget, ...]
    label_shares: Callable[[range], np.ndarray] | None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.budgets)

    @property
    def largest(self) -> Budget:
        """Return the tier whose view of the global model is reported as the run's metric."""
        return largest_tier(self.tiers)

    def sample(self, num_clients: int | None, seed: int) -> tuple[int, ...]:
        """Draw a fixed sample of so many clients, ascending; all when None or more than there are."""
        return choose_cohort(len(self), min(len(self), num_clients or len(self)), seed, round=0)
