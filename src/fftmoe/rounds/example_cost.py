"""What the noise that clients add for their single examples has cost so far (docs/privacy.md)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fftmoe.errors import InputError
from fftmoe.server.accountant import Mechanism
from fftmoe.store.privacy_ledger import AskedLedger


@dataclass(frozen=True)
class ExampleRule:
    """The differential privacy of single examples.

    Attributes:
        mechanism: one local step. steps: local steps of a client in a round.
        epsilon: the run ends before a round after which more would be spent; None: never.
        fewest_examples: of a client. rounds: of the whole run, for the promise.
    """

    mechanism: Mechanism
    steps: int
    epsilon: float | None
    fewest_examples: int
    rounds: int


class ExampleCost:
    """An upper bound of what a client's examples have cost: the client with the fewest, asked as often as any.

    A client that is asked counts as one that has answered; a round that is repeated after a crash counts twice.

    Args:
        ledger: where it is kept who was asked. asked: how often each client was asked so far.

    Raises:
        InputError: the stated delta is too large, or a single round costs more than the stated epsilon.
    """

    def __init__(self, rule: ExampleRule, ledger: AskedLedger, asked: Counter[int]) -> None:
        self.mechanism, self._rule = rule.mechanism, rule
        self._ledger, self._asked, self.stopped_early = ledger, asked, False
        if rule.mechanism.delta >= 1 / rule.fewest_examples:
            raise InputError(
                f"privacy.examples.delta={rule.mechanism.delta:g} would allow the run to reveal one of the "
                f"{rule.fewest_examples} examples of a client entirely; set it well below "
                f"{1 / rule.fewest_examples:.2g}"
            )
        if rule.epsilon is not None and self._after(1) > rule.epsilon:
            raise InputError(
                f"a single round costs an epsilon of {self._after(1):.3g}, above privacy.examples.epsilon="
                f"{rule.epsilon:g}; raise privacy.examples.noise_multiplier, or lower federation.local_steps"
            )

    @property
    def promise(self) -> str:
        """The guarantee in words, printed when the run starts."""
        rule, rate = self._rule, self.mechanism.sampling_rate
        return (
            f"examples are private: epsilon {self._after(rule.rounds):.3g} at delta {self.mechanism.delta:g} for those "
            f"of a client that is asked in all {rule.rounds} rounds, {rule.steps} steps each, at a sampling rate of "
            f"{rate:.3g}"
        )

    def may_ask_again(self) -> bool:
        """Whether the client that was asked most often can be asked once more within the stated epsilon."""
        most = self._rule.epsilon
        self.stopped_early = most is not None and self._after(self._times + 1) > most
        return not self.stopped_early

    def ask(self, cohort: Iterable[int]) -> None:
        """Count these clients; the count is on the disk when this returns."""
        self._asked.update(cohort)
        self._ledger.write(self._asked)

    def row(self) -> dict[str, Any]:
        """Return what has been spent, for the row of a round."""
        return {"example_epsilon": self._after(self._times)}

    def summary(self) -> dict[str, Any]:
        """Return `privacy.examples` of `summary.json`."""
        return {
            "epsilon": self._after(self._times),
            "delta": self.mechanism.delta,
            "noise_multiplier": self.mechanism.noise_multiplier,
            "sampling_rate": self.mechanism.sampling_rate,
            "steps": self._rule.steps * self._times,
            "stopped_early": self.stopped_early,
        }

    @property
    def _times(self) -> int:
        return max(self._asked.values(), default=0)

    def _after(self, times: int) -> float:
        return self.mechanism.epsilon(times * self._rule.steps)
