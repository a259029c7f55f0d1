"""Which of a recipe's tiers a machine can take: as it says, by its limits, or by what is measured of it."""

import time

import torch

from fftmoe.config import Recipe
from fftmoe.cost.memory import available_mib
from fftmoe.data import Examples
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.budget import ExpertShape, Limits, resolve

LIMITS = ("memory_mib", "uplink_mib", "gflops")
MEMORY_SHARE = 0.25  # of what is free now; the rest is for the backbone's activations and the machine's other work
TIME_SHARE = 0.25  # of a round's deadline
MATRIX = 512
MEASURE_SECONDS = 0.2


def fitting_tier(budget: str, recipe: Recipe, shape: ExpertShape, blocks: tuple[int, ...], examples: Examples) -> str:
    """The name of the tier that `budget` comes to (see `SiteSettings.budget`).

    Raises:
        InputError: it names no tier and no limit, or not even the smallest tier fits.
    """
    names = [tier.name for tier in recipe.budgets]
    if budget in names:
        return budget
    limits = _measured(recipe) if budget == "auto" else _stated(budget, names)
    tokens = _tokens_per_round(recipe, examples)
    sizes = resolve(
        Limits(
            "this machine",
            1.0,
            memory_mib=limits.get("memory_mib"),
            uplink_mib=limits.get("uplink_mib"),
            gflops=limits.get("gflops"),
        ),
        shape=shape,
        num_experts=recipe.adapter.num_experts,
        blocks=blocks,
        tokens_per_round=tokens,
    )
    stated = [t for t in recipe.budgets if t.experts is not None and t.top_k is not None]
    fit = [t for t in stated if (t.experts or 0) <= sizes.experts and (t.top_k or 0) <= sizes.top_k]
    if not fit:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in limits.items())
        raise InputError(
            f"no tier of the recipe fits this machine: with {shown} it can hold {sizes.experts} experts and use "
            f"{sizes.top_k} for a token; raise the limits, or name a tier: {', '.join(names)}"
        )
    return max(fit, key=lambda tier: (tier.experts or 0, tier.top_k or 0)).name


def _stated(budget: str, names: list[str]) -> dict[str, float]:
    """`memory_mib=300,gflops=5` as numbers."""
    limits = {}
    for part in budget.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise InputError(
                f"--budget {budget!r} is no tier of the recipe{did_you_mean(budget, names)}; or write auto, or limits "
                "such as memory_mib=300,gflops=5"
            )
        if name not in LIMITS:
            raise InputError(f"--budget {budget!r}: unknown limit {name!r}{did_you_mean(name, LIMITS)}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise InputError(f"--budget {budget!r}: {name} is {value!r}, and must be a number") from None
    return limits


def _measured(recipe: Recipe) -> dict[str, float]:
    """What a quarter of the free memory and of a round's time come to on one core of this machine."""
    gflops_per_second = _speed()
    return {
        "memory_mib": MEMORY_SHARE * available_mib(),
        "gflops": TIME_SHARE * recipe.federation.deadline_seconds * gflops_per_second,
    }


def _speed() -> float:
    """GFLOP a second of float32 matrix products on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(MATRIX, MATRIX)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < MEASURE_SECONDS:
            torch.mm(a, a)
            done += 1
        return done * 2 * MATRIX**3 / (time.perf_counter() - started) / 1e9
    finally:
        torch.set_num_threads(threads)


def _tokens_per_round(recipe: Recipe, examples: Examples) -> int:
    federation = recipe.federation
    mean = float(examples.lengths.double().mean())
    rows = (
        federation.local_steps * federation.batch_size
        if federation.local_steps is not None
        else (federation.local_epochs or 1) * len(examples)
    )
    return max(1, round(rows * mean))
