"""What a run is expected to take, told before it trains, and held against what it took."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fftmoe.cost.timing import TimedClient
from fftmoe.data import WithPrefix
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import RunError
from fftmoe.records import ServerState
from fftmoe.report.progress import Progress, duration
from fftmoe.setup.compose import Experiment
from fftmoe.setup.engine import num_workers

WORTH_SAYING = 60  # seconds; who waits less has seen it before having read it
LONG = 1800  # seconds; what takes longer one would rather try first
MIB = 2**20


def seconds_by_tier(experiment: Experiment, initial: ServerState) -> dict[str, float]:
    """Seconds of an average client's round by tier, from a few timed steps; empty where none can be timed here."""
    if experiment.remote:
        return {}
    try:
        client = TimedClient(experiment, initial)
        client.seconds(experiment.largest, 1)  # warms up
        steps = client.sample_steps()
        return {tier.name: client.seconds(tier, steps) / steps * client.steps() for tier in experiment.tiers}
    except RunError:  # a loss that is no number: the run itself will say so, and whose it is
        return {}


def resident_mib(experiment: Experiment) -> float | None:
    """What the run's processes will hold at their largest, told once `seconds_by_tier` has trained a few steps here.

    This process as it is now, with the files of cached states, which count as they are read; a worker is expected to
    take as much. None where clients are elsewhere.
    """
    if experiment.remote:
        return None
    engine, workers = experiment.recipe.engine, num_workers(experiment.recipe)
    cached = [e.path.stat().st_size for e in (experiment.train, experiment.test) if isinstance(e, WithPrefix)]
    processes = 1 if workers == 1 and engine.kind == "local" else 1 + workers
    return (peak_rss_mib() + sum(cached) / MIB) * processes


def tell(experiment: Experiment, seconds: Mapping[str, float], done: int, folder: Any, progress: Progress) -> None:
    """How long the clients of the rounds after `done` will train, and for a long run what one can do about it."""
    recipe = experiment.recipe
    shares = np.array([len(experiment.budgets.members(tier)) for tier in experiment.tiers]) / experiment.num_clients
    if not seconds:
        return
    each = float(shares @ [seconds[tier.name] for tier in experiment.tiers])
    cohort, rounds = recipe.federation.clients_per_round, recipe.federation.rounds - done
    total = rounds * cohort * each / min(num_workers(recipe), os.cpu_count() or 1, cohort)
    if total < WORTH_SAYING:
        return
    progress.say(
        f"{rounds} rounds will train for about {duration(total)}; Ctrl-C stops after a checkpoint, "
        f"`fftmoe resume {folder}` goes on"
    )
    if total > LONG:
        progress.say("to try it first: --set federation.rounds=2")


def against(
    predicted: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    measured: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, dict[str, float]]]:
    """`{tier: {quantity: {"predicted", "measured"}}}` of one client in one round, of what is known of both.

    Args:
        predicted: bytes by tier. seconds: by tier, as timed before the run. measured: `Ledger.per_client_round`.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for tier, costs in measured.items():
        pairs = {name: (predicted.get(tier, {}).get(name), costs[name]) for name in ("bytes_down", "bytes_up")}
        pairs["seconds_per_client_round"] = (seconds.get(tier), costs["seconds"])
        found[tier] = {
            name: {"predicted": expected, "measured": actual}
            for name, (expected, actual) in pairs.items()
            if expected is not None
        }
    return found
