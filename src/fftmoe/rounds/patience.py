"""Ends a run whose model has not become better for some time (early stopping)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fftmoe.shown import count_of
from fftmoe.store import Ranking

Patience = Callable[[Sequence[Mapping[str, Any]]], str | None]
"""From the rows of a run so far to why it ends before its next round; None to go on."""


def endless(rows: Sequence[Mapping[str, Any]]) -> None:
    """Return None: the run goes on to its last round."""


@dataclass(frozen=True)
class Stopper:
    """Ends a run after `most` measurements in a row that are no better than the best one before them.

    It depends on the rows alone, so a resumed run ends after the same round.
    """

    ranking: Ranking
    most: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Return why the run ends; None to go on."""
        if self.ranking.without_gain(rows) < self.most:
            return None
        best = self.ranking.best(rows)
        return (
            f"the run ends after round {rows[-1]['round']}: {self.ranking.metric.replace('_', ' ')} has not improved "
            f"since round {best} (federation.patience={self.most})"
        )


def idle_notes(most: int | None, every: int, rounds: int) -> tuple[str, ...]:
    """Return a sentence where patience cannot end a run before its last round, so that it has no effect.

    Args:
        most: measurements without a gain, after which the run ends; None for no patience. every: rounds from one of
            them to the next.
    """
    if most is None or most * every < rounds:
        return ()
    return (
        f"federation.patience={most} has no effect: {count_of(most, 'measurement')}, each "
        f"{count_of(every, 'round')} after the one before, {'takes' if most == 1 else 'take'} as long as "
        f"federation.rounds={rounds} or longer; lower federation.patience or evaluation.every",
    )
