"""The rounds of a run that protects single examples (docs/privacy.md): what the clients' own noise has cost so far."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.config import PrivacySection
from fftmoe.errors import InputError
from fftmoe.server.accountant import Mechanism
from fftmoe.setup.compose import Experiment
from fftmoe.store.privacy_ledger import AskedLedger


class ExampleCost:
    """What a client's examples have cost at most: that of the client with the fewest, asked as often as any.

    A client that is asked counts as one that has answered; a round that is played again counts twice.
    """

    def __init__(
        self, experiment: Experiment, settings: PrivacySection, ledger: AskedLedger, asked: Counter[int]
    ) -> None:
        assert settings.examples is not None
        own, federation = settings.examples, experiment.recipe.federation
        rate = sampling_rate(federation.batch_size, experiment.fewest_examples)
        if own.delta >= 1 / experiment.fewest_examples:
            raise InputError(
                f"privacy.examples.delta={own.delta:g} would allow to give away one of the "
                f"{experiment.fewest_examples} examples of a client entirely; set it well below "
                f"{1 / experiment.fewest_examples:.2g}"
            )
        self.mechanism = Mechanism(rate, own.noise_multiplier, own.delta)
        self._steps, self._most, self._rounds = federation.local_steps or 0, own.epsilon, federation.rounds
        self._ledger, self._asked, self.stopped_early = ledger, asked, False
        if self._most is not None and self._after(1) > self._most:
            raise InputError(
                f"a single round costs an epsilon of {self._after(1):.3g}, above privacy.examples.epsilon="
                f"{self._most:g}; raise privacy.examples.noise_multiplier, or lower federation.local_steps"
            )

    @property
    def promise(self) -> str:
        """For a person."""
        epsilon, delta, rate = self._after(self._rounds), self.mechanism.delta, self.mechanism.sampling_rate
        return (
            f"examples are private: epsilon {epsilon:.3g} at delta {delta:g} for those of a client that is asked in "
            f"all {self._rounds} rounds, {self._steps} steps each, at a sampling rate of {rate:.3g}"
        )

    def may_ask_again(self) -> bool:
        """Whether the client that was asked most could be asked once more within the stated epsilon."""
        self.stopped_early = self._most is not None and self._after(self._times + 1) > self._most
        return not self.stopped_early

    def ask(self, cohort: Iterable[int]) -> None:
        """Count these clients; it is on the disk when this returns, before anything is sent."""
        self._asked.update(cohort)
        self._ledger.write(self._asked)

    def told(self) -> dict[str, Any]:
        """What has been spent."""
        return {"example_epsilon": self._after(self._times)}

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return {
            "epsilon": self._after(self._times),
            "delta": self.mechanism.delta,
            "noise_multiplier": self.mechanism.noise_multiplier,
            "sampling_rate": self.mechanism.sampling_rate,
            "steps": self._steps * self._times,
            "stopped_early": self.stopped_early,
        }

    @property
    def _times(self) -> int:
        return max(self._asked.values(), default=0)

    def _after(self, times: int) -> float:
        return self.mechanism.epsilon(times * self._steps)
