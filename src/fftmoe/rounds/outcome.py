"""Refuses to call a run finished in which nothing was learned."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from fftmoe.engines.base import Fault
from fftmoe.errors import RunError
from fftmoe.records import ServerState
from fftmoe.rounds.closed_form import describe_faults
from fftmoe.shown import count_of

REMOVE_CAUSE = (
    "remove the cause and start a new run; if clients diverge, lower federation.learning_rate or head.learning_rate"
)


def check_learned(
    rows: Sequence[Mapping[str, Any]], initial: ServerState, final: ServerState, trained: Collection[str]
) -> None:
    """Check that rounds have changed the model, and that it has only finite numbers.

    Args:
        rows: of `metrics.jsonl`; the first one is of round 0.
        initial: the state before the first round. final: the state after the last one.
        trained: the names of the tensors that rounds train; empty for a method that keeps them at the clients.

    Raises:
        RunError: every round was void, no trained tensor has changed, or a tensor has a number that is not finite.
    """
    rounds = [row for row in rows if row["round"] > 0]
    if rounds and all("void" in row for row in rounds):
        faults = [Fault(**fault) for row in rounds for fault in row.get("faults", ())]
        raise RunError(
            f"nothing was learned: no round of {len(rounds)} had enough valid updates ({describe_faults(faults)}); "
            f"{REMOVE_CAUSE}"
        )
    broken = [name for name, tensor in final.tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise RunError(
            f"the model is broken: there are numbers that are not finite in {len(broken)} of its "
            f"{count_of(len(final.tensors), 'tensor')} (the first is {broken[0]}); {REMOVE_CAUSE}"
        )
    if rounds and trained and all(torch.equal(initial.tensors[name], final.tensors[name]) for name in trained):
        raise RunError(
            f"nothing was learned: after {count_of(len(rounds), 'round')} each of "
            f"{count_of(len(trained), 'trained tensor')} is as it was before the first; raise federation.learning_rate "
            "or head.learning_rate (they may be too small to change a float32 number), or in a private run lower "
            "privacy.min_contributors"
        )
