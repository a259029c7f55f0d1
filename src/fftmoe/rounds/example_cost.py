"""Computes what the noise that clients add for their single examples has cost so far (docs/privacy.md)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.rounds.counted import check_account
from fftmoe.server.accountant import Adjacency, epsilon_of
from fftmoe.shown import count_of
from fftmoe.store.privacy_ledger import AskedLedger, TrainingRequests

EXAMPLE_ADJACENCY = Adjacency.EXAMPLE_REPLACED  # it keeps the number of examples, from which the sampling rate follows


@dataclass(frozen=True)
class ExampleRule:
    """States the differential privacy of single examples.

    Attributes:
        population: identifies the clients behind the ids.
        release: what a client releases in a round: its local steps, at the sampling rate of the client with the fewest
            examples.
        delta: of the guarantee. epsilon: the run ends before a round after which more would be spent; None: never.
        fewest_examples: of a client.
    """

    population: str
    release: Release
    delta: float
    epsilon: float | None
    fewest_examples: int


class ExampleCost:
    """Computes an upper bound of what a client's examples have cost: the client with the fewest, asked as often as any.

    A client that is asked counts as one that has answered; a round that is repeated after a crash counts twice. Where
    the clients, the sampling rate or the noise have changed since the run began, the parts count one after another,
    each as it was, for a client that was asked most often in every part.

    Args:
        ledger: where it is kept who was asked. asked: how often each client was asked so far.

    Raises:
        InputError: the stated delta is too large, or a single round costs more than the stated epsilon.
    """

    def __init__(self, rule: ExampleRule, ledger: AskedLedger, asked: Sequence[TrainingRequests]) -> None:
        self._rule, self._ledger, self.stopped_early = rule, ledger, False
        same = (part for part in asked if (part.population, part.release) == (rule.population, rule.release))
        self._now = next(same, TrainingRequests(rule.population, rule.release))
        self._earlier = [part for part in asked if part is not self._now]
        if rule.fewest_examples < 1:
            raise InputError("a client has no examples, so none of its examples can be drawn; leave the client out")
        if rule.delta >= 1 / rule.fewest_examples:
            raise InputError(
                f"privacy.examples.delta={rule.delta:g} would allow the run to reveal one of the "
                f"{count_of(rule.fewest_examples, 'example')} of a client entirely; set it well below "
                f"{1 / rule.fewest_examples:.2g}"
            )
        single = epsilon_of([rule.release], rule.delta, EXAMPLE_ADJACENCY)
        if rule.epsilon is not None and single > rule.epsilon:
            raise InputError(
                f"a single round costs an epsilon of {single:.3g}, above privacy.examples.epsilon="
                f"{rule.epsilon:g}; raise privacy.examples.noise_multiplier, or lower federation.local_steps"
            )

    def promise(self, rounds_left: int) -> str:
        """Return the guarantee in words, printed when the run starts or goes on."""
        release, delta = self._rule.release, self._rule.delta
        return (
            f"examples are private: epsilon {self._after(rounds_left):.3g} at delta {delta:g} after all rounds, for a "
            f"client that is asked in every round ({EXAMPLE_ADJACENCY}); {count_of(release.times, 'step')} a round, at "
            f"a sampling rate of {release.sampling_rate:.3g}"
        )

    def may_ask_again(self) -> bool:
        """Return whether the client that was asked most often can be asked once more within the stated epsilon."""
        most = self._rule.epsilon
        self.stopped_early = most is not None and self._after(1) > most
        return not self.stopped_early

    def ask(self, cohort: Iterable[int]) -> None:
        """Count these clients; the count is on the disk when this returns."""
        self._now.times.update(cohort)
        self._ledger.write([*self._earlier, self._now])

    def check_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """See `check_account`."""
        check_account(rows, self._asked, "clients_asked", "example_epsilon", self._ledger.path)

    @property
    def _asked(self) -> int:
        """Return how often clients were asked, all together: unlike the most of any client,
        it grows with every asking.
        """
        return sum(sum(part.times.values()) for part in (*self._earlier, self._now))

    def row(self) -> dict[str, Any]:
        """Return what has been spent, and counted, for the row of a round."""
        return {"example_epsilon": self._after(0), "clients_asked": self._asked}

    def summary(self) -> dict[str, Any]:
        """Return `privacy.examples` of `summary.json`."""
        release = self._rule.release
        return {
            "epsilon": self._after(0),
            "delta": self._rule.delta,
            "adjacency": str(EXAMPLE_ADJACENCY),
            "noise_multiplier": release.noise_multiplier,
            "sampling_rate": release.sampling_rate,
            "steps": sum(made.times for made in self._made(0)),
            "history": [asdict(made) for made in self._made(0)],
            "stopped_early": self.stopped_early,
        }

    def _after(self, further: int) -> float:
        """Return epsilon after so many further rounds in which the client that was asked most often is asked again."""
        return epsilon_of(self._made(further), self._rule.delta, EXAMPLE_ADJACENCY)

    def _made(self, further: int) -> list[Release]:
        now = self._now.most.again(further * self._rule.release.times)
        return [made for made in (*(part.most for part in self._earlier), now) if made.times]
