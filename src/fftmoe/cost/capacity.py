"""Finds the tier of a recipe that a site's machine can take: by name, by stated limits, or by measured ones."""

from collections.abc import Mapping, Sequence

from fftmoe.cost.analytic import adapter_cost, budget_order
from fftmoe.cost.machine import available_mib, gflops_per_second
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.budget import MIB, ExpertShape
from fftmoe.records import Budget

LIMITS = ("memory_mib", "uplink_mib", "gflops")
MEMORY_SHARE = 0.25  # of the free memory; the rest is for the backbone's activations and the machine's other work
TIME_SHARE = 0.25  # of a round's deadline


def fitting_tier(
    budget: str,
    names: Sequence[str],
    tiers: Sequence[Budget],
    shape: ExpertShape,
    upload: str,
    tokens_per_round: int,
    deadline_seconds: float,
) -> str:
    """Return the name of the tier that `budget` stands for.

    Args:
        budget: the name of a tier; limits such as `memory_mib=300,gflops=5`, for the largest tier within them; or
            `auto`, for limits that are measured (`measured_limits`).
        names: of all tiers. tiers: those that limits may choose, which state their experts and their top_k.
        upload: the numbers of an upload, as in `Training.upload`.
        tokens_per_round: that this site trains on. deadline_seconds: of a round.

    Raises:
        InputError: `budget` is neither a tier nor limits, or no tier is within the limits.
    """
    if budget in names:
        return budget
    limits = measured_limits(deadline_seconds) if budget == "auto" else stated_limits(budget, names)
    needs = {tier: _needs(tier, shape, upload, tokens_per_round) for tier in tiers}
    fitting = [tier for tier, need in needs.items() if all(need[name] <= limit for name, limit in limits.items())]
    if fitting:
        return max(fitting, key=budget_order).name
    smallest = "no tier states its experts and top_k"
    if needs:
        tier = min(needs, key=budget_order)
        smallest = f"the smallest, {tier.name!r}, needs {_limits_text({name: needs[tier][name] for name in limits})}"
    raise InputError(
        f"no tier of the recipe fits this machine, which has {_limits_text(limits)}: {smallest}; "
        f"raise the limits, or name a tier: {', '.join(names)}"
    )


def _needs(tier: Budget, shape: ExpertShape, upload: str, tokens: int) -> dict[str, float]:
    """Return what a tier takes of each of `LIMITS` in a round."""
    cost = adapter_cost(tier, shape, upload)
    return {
        "memory_mib": cost.training_bytes / MIB,
        "uplink_mib": cost.bytes_up / MIB,
        "gflops": cost.flops_per_token * tokens / 1e9,
    }


def _limits_text(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in limits.items())


def stated_limits(text: str, names: Sequence[str]) -> dict[str, float]:
    """Return `memory_mib=300,gflops=5` as numbers.

    Args:
        names: of the tiers, for a suggestion where `text` may be a misspelt one.

    Raises:
        InputError: the text states no limits.
    """
    limits = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise InputError(
                f"--budget {text!r} is not a tier of the recipe{did_you_mean(text, names)}; or write auto, or limits "
                "such as memory_mib=300,gflops=5"
            )
        if name not in LIMITS:
            raise InputError(f"--budget {text!r}: unknown limit {name!r}{did_you_mean(name, LIMITS)}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise InputError(f"--budget {text!r}: {name} is {value!r}, and must be a number") from None
    return limits


def measured_limits(deadline_seconds: float) -> dict[str, float]:
    """Return limits for `auto`: a quarter of the free memory, and a quarter of a round's time on one core.

    The timed forecast (`timed.py`) is of no use here: it trains the real client from the first round's state, and a
    site chooses its tier before it joins, when it has neither a state nor a plan. So one matrix product is timed.
    """
    return {
        "memory_mib": MEMORY_SHARE * available_mib(),
        "gflops": TIME_SHARE * deadline_seconds * gflops_per_second(),
    }
