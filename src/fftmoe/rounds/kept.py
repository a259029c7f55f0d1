"""Decides which round's model a run keeps: that of the last round,
or of one that was better on rows that clients set aside.
"""

from dataclasses import replace
from typing import Any

from fftmoe.records import ServerState
from fftmoe.rounds.journal import Journal
from fftmoe.rounds.loop import Federation, Metrics
from fftmoe.rounds.validation import validated_in
from fftmoe.server.average import served


def kept_model(
    f: Federation, journal: Journal, last: ServerState, metrics: Metrics
) -> tuple[ServerState, dict[str, Any]]:
    """Return the state that is kept, and its part of the summary.

    A run that keeps its best round says which one it is (`best_round`). If that is not the last one, its model is
    measured as the last one was, whose own metrics are under `last`.

    Args:
        last: the state after the last round. metrics: of that state.
    """
    if journal.ranking is None:
        return last, metrics
    best = journal.folder.load_best(journal.ranking)
    for reason in () if best is None else best.passed_over:
        journal.say(f"warning: a better round cannot be kept, because its checkpoint is damaged: {reason}")
    if best is None or best.state.round == last.round:
        return last, {**metrics, "best_round": last.round}
    state = calibrated(served(best.state), last)
    journal.say(f"keeping the model of round {state.round}, by the rows that clients set aside ({_why(state.round)})")
    own = {**f.evaluate.final(state), **validated_in(best.row)}
    return state, {**own, "best_round": state.round, "last": {"round": last.round, **_overall(metrics)}}


def calibrated(state: ServerState, last: ServerState) -> ServerState:
    """Return the state with a temperature: that of the last state where it has none.

    The head before the first round has no temperature of its own. The first that is found is that of this head's
    outputs (`server/solve.py`).
    """
    return replace(state, temperature=last.temperature) if state.temperature is None else state


def _why(round: int) -> str:
    """Return by which rule a round is kept (`Ranking.bar`)."""
    if round == 0:
        return "no later round was at least as good as the model before training"
    return "the last one that is as good as the start, and as the best one within a standard error"


def _overall(metrics: Metrics) -> dict[str, Any]:
    """Return the metrics that are numbers or intervals, without those of each tier and client."""
    return {name: value for name, value in metrics.items() if isinstance(value, float) or name.endswith("_interval")}
