"""Lets each client train a part of the model for itself after the last round (`client/own_part.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fftmoe.records import ServerState, Training
from fftmoe.rounds.before_and_after import WRITTEN
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.measure import CHOICE, CHOICE_MARGIN, PERSONAL, ModelMeasure
from fftmoe.rounds.own_choice import COMMON, PRIVATE
from fftmoe.server.plan import plan_round


@dataclass(frozen=True)
class OwnTraining:
    """Trains clients from the model that the run keeps.

    Attributes:
        exchange: sends the messages; it has a separate ledger, because this is no round of the run.
        training: of a client. seed: of the recipe.
    """

    measure: ModelMeasure
    exchange: Exchange
    training: Training
    seed: int

    def __call__(self, kept: ServerState, listed: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return what the clients reach with their own parts, for the summary.

        Args:
            kept: the state that the run keeps. listed: `clients` of the summary.

        Returns:
            `clients` with these beside the others; `personal_by_client`, the scores of the clients that keep a part, by
            client; and `own_training_faults`, if there are any.
        """
        m, ledger = self.measure, self.exchange.ledger
        everyone = range(len(m.population))
        plan = plan_round(
            m.method, kept, kept.round, everyone, m.population.budgets, self.training, self.seed, task="own"
        )
        updates = self.exchange.updates(plan, partial(m.method.download, kept))
        found = {update.client_id: update.metrics for update in updates}
        scores = {client: self._scores(metrics) for client, metrics in found.items() if metrics["margin"] > 0}
        faults = [fault._asdict() for fault in ledger.new_faults]
        return {
            **({"clients": {**listed, **self._beside(found, scores, listed)}} if listed else {}),
            "personal_by_client": {client: own for client, own in scores.items() if own},
            **({"own_training_faults": faults} if faults else {}),
        }

    def _scores(self, metrics: Mapping[str, float]) -> dict[str, float]:
        names = (self.measure.task.metric, *WRITTEN)
        return {name: round(metrics[f"own_{name}"], 4) for name in names if f"own_{name}" in metrics}

    def _beside(
        self,
        found: Mapping[int, Mapping[str, float]],
        scores: Mapping[int, Mapping[str, float]],
        listed: Mapping[str, Sequence[Any]],
    ) -> dict[str, list[Any]]:
        """Return what each client uses, and how good that is: the model for everyone where it keeps nothing."""
        metric, number = self.measure.task.metric, len(self.measure.population)
        lists: dict[str, list[Any]] = {
            CHOICE: [PRIVATE if client in scores else COMMON for client in range(number)],
            CHOICE_MARGIN: [round(found[c]["margin"], 4) if c in found else None for c in range(number)],
        }
        common = listed.get(metric)
        if common is None or len(common) != number:  # nobody says whose the test rows are
            return lists
        personal = [scores.get(client, {}).get(metric, common[client]) for client in range(number)]
        return {PERSONAL: personal, **lists}
