"""The method `centralized` trains FFT-MoE with all data in one place, an upper bound for a federation.

It only transforms the recipe; it has no method class.
"""

import math

from fftmoe.config import BudgetSection, Recipe
from fftmoe.methods.registry import METHODS


def is_centralized(recipe: Recipe) -> bool:
    """Return whether `centralized` has to transform the recipe before it is run."""
    return recipe.method in METHODS and METHODS[recipe.method].capabilities.pools_data


def centralized(recipe: Recipe, num_examples: int, num_clients: int) -> Recipe:
    """Return the recipe with one client of the largest tier that holds all data and does the work of a whole cohort.

    A round has as many steps as all clients of a round together, so that learning curves can be compared.

    Args:
        num_examples: training examples of all clients.
        num_clients: clients of the original federation.
    """
    federation = recipe.federation
    steps = federation.local_steps
    if steps is None:
        steps = round((federation.local_epochs or 1) * num_examples / num_clients / federation.batch_size)
    largest = max(recipe.budgets, key=_size)
    tier = largest.model_copy(update={"fraction": 1.0})
    one_client = type(recipe.partition)(kind="iid", num_clients=1)
    one_cohort = federation.model_copy(
        update={
            "clients_per_round": 1,
            "local_epochs": None,
            "local_steps": max(1, steps * federation.clients_per_round),
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
            "ema_decay": 0.0,
        }
    )
    return recipe.model_copy(update={"partition": one_client, "budgets": [tier], "federation": one_cohort})


def _size(tier: BudgetSection) -> tuple[float, ...]:
    """Return a key that orders tiers by the size of their budgets: first those with all blocks, then by stated values,
    then by limits.
    """
    limits = (tier.experts, tier.top_k, tier.memory_mib, tier.uplink_mib, tier.gflops, tier.deadline_seconds)
    return (float(tier.blocks in (None, "all")), *(math.inf if limit is None else limit for limit in limits))
