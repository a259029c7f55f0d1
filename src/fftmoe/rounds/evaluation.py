"""Decides when a run is measured, and on what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fftmoe.client.runtime import ClientStates
from fftmoe.data import Examples
from fftmoe.records import ServerState
from fftmoe.rounds.baselines import BeforeRounds, nothing_before
from fftmoe.rounds.measure import ModelMeasure
from fftmoe.rounds.personal import PersonalModels
from fftmoe.rounds.validation import Validate, no_validation


@dataclass(frozen=True)
class Evaluation:
    """Decides what is measured after a round: everything after the last one, before that only what is due.

    A call also validates on the rows that clients have set aside, where that is due.

    Attributes:
        sample: the held-out examples that are measured on between the rounds.
        every: rounds from one measurement to the next.
        personal: measures clients' own models, in addition to the global model if there is one; None where that was not
            asked for.
        generate: measures what a language model writes; None where that was not asked for.
        states: where clients keep what never leaves them.
        validate: the metric on the rows that clients have set aside.
        before: what else is measured before the first round.
    """

    measure: ModelMeasure
    sample: Examples
    every: int
    num_rounds: int
    states: ClientStates
    personal: PersonalModels | None = None
    generate: Callable[[], dict[str, Any]] | None = None
    validate: Validate = no_validation
    before: BeforeRounds = nothing_before

    def __call__(self, state: ServerState) -> dict[str, Any]:
        """Return the metrics that are due after the rounds of this state; the run's own metric comes first."""
        metrics = self._measured(state)
        before = self.before(state, metrics) if state.round == 0 else {}
        return {**metrics, **before, **self.validate(state)}

    def _measured(self, state: ServerState) -> dict[str, Any]:
        if state.round == self.num_rounds:
            return self.final(state)
        # Each client's own model takes a pass over the test set, so these are left to the end.
        if state.round % self.every or self.measure.method.capabilities.personal:
            return {}
        self.measure.install(state, self.measure.population.largest)
        if state.round == 0:  # the run's result is compared with its start
            return self.measure.with_interval(self.measure.tally(self.sample, interval=True))
        return self.measure.tally(self.sample).metrics()

    def final(self, state: ServerState) -> dict[str, Any]:
        """Measure the final state: the global model, or clients' own models where there is none, or both."""
        if self.measure.method.capabilities.personal:
            assert self.personal is not None, "without a global model, clients' own models are measured"
            return self.personal(state, self.states)
        metrics = self.measure.globally(state)
        if self.personal is not None:
            metrics |= self.personal.next_to_global(state, self.states)
        if self.generate is not None:
            self.measure.install(state, self.measure.population.largest)
            metrics |= self.generate()
        return metrics
