"""Makes the forecast as a run uses it: announced before it trains, and recorded next to the measured costs after it."""

import os
from collections.abc import Mapping
from pathlib import Path

from fftmoe.report.progress import Progress, duration
from fftmoe.shown import count_of, quoted

ANNOUNCED_SECONDS = 60  # a shorter run is over before its announcement has been read
LONG_SECONDS = 1800  # a longer one is worth a trial first


def announce_training(
    seconds: Mapping[str, float],
    members: Mapping[str, int],
    rounds: int,
    clients_per_round: int,
    workers: int,
    folder: Path | str,
    progress: Progress,
) -> None:
    """Say how long the clients will train, and what to do about a long run; say nothing of a short one.

    Args:
        seconds: of a client's round by tier, as `time_tiers` gives them; where it is empty, nothing is said.
        members: the number of clients by tier.
        rounds: that are left. workers: processes that train clients. folder: of the run.
    """
    if not seconds:
        return
    mean = sum(count * seconds[tier] for tier, count in members.items()) / sum(members.values())
    total = rounds * clients_per_round * mean / min(workers, os.cpu_count() or 1, clients_per_round)
    if total < ANNOUNCED_SECONDS:
        return
    progress.say(
        f"{count_of(rounds, 'round')} will train for about {duration(total)}; Ctrl-C stops after a checkpoint, `fftmoe "
        f"resume {quoted(folder)}` goes on"
    )
    if total > LONG_SECONDS:
        progress.say("to try it first: --set federation.rounds=2")


def predicted_and_measured(
    predicted: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
    measured: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return `{tier: {quantity: {"predicted", "measured"}}}` of one client's round, for each quantity with a
    prediction.

    Args:
        predicted: as `cost_by_tier` gives it. seconds: as `time_tiers` gives them, or empty.
        measured: `bytes_down`, `bytes_up` and `seconds` by tier, means over the rounds of its clients.
    """
    compared: dict[str, dict[str, dict[str, float]]] = {}
    for tier, costs in measured.items():
        pairs = {name: (predicted.get(tier, {}).get(name), costs[name]) for name in ("bytes_down", "bytes_up")}
        pairs["seconds_per_client_round"] = (seconds.get(tier), costs["seconds"])
        compared[tier] = {
            name: {"predicted": expected, "measured": actual}
            for name, (expected, actual) in pairs.items()
            if expected is not None
        }
    return compared
