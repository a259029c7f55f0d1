"""Computes what the entries of a site's ledger come to: how often the site was asked, and what its rows have lost."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.server.accountant import Adjacency, epsilon_of, of_replaced_data
from fftmoe.setup.policy import NOISY

OPENED, ASKED, ANSWERED, REFUSED, FAILED = "opened", "asked", "answered", "refused", "failed"

RunKey = tuple[str, str, str]
"""A run: its server, its name, and the digest of its recipe. Two servers may give two runs the same name."""


@dataclass(frozen=True)
class Cost:
    """States what one answer costs the site's rows.

    Attributes:
        mode: see `PrivacyAsked`.
        release: the noisy sums that the site makes, where it adds noise.
        epsilon, delta: what the recipe states for its whole run, where the server adds noise; epsilon is infinite if it
            states none.
    """

    mode: str
    release: Release | None = None
    epsilon: float = 0.0
    delta: float = 0.0


@dataclass(frozen=True)
class Account:
    """States what a site has given so far.

    Attributes:
        times: how often it was asked for each task, by the names of a policy.
        bare: how often something left without any noise.
        releases: the noisy sums that it made.
        stated: (server, run, recipe) -> the (epsilon, delta) that the recipe states, where the server adds noise.
    """

    times: Mapping[str, int]
    bare: int
    releases: tuple[Release, ...]
    stated: Mapping[RunKey, tuple[float, float]]

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> "Account":
        """Return the account of these entries of a ledger.

        Raises:
            InputError: an entry lacks what its cost follows from, so the account is unknown.
        """
        with _countable():
            asked = [entry for entry in entries if entry["event"] == ASKED]
            costs = [_cost_in(entry) for entry in asked]
            keys = [(entry["server"], entry["run"], entry["recipe"]) for entry in asked]
            tasks = Counter(entry["task"] for entry in asked)
        return cls(
            times=tasks,
            bare=sum(cost.mode not in NOISY for cost in costs),
            releases=tuple(cost.release for cost in costs if cost.release is not None),
            stated={
                key: (cost.epsilon, cost.delta) for key, cost in zip(keys, costs, strict=True) if cost.mode == "clients"
            },
        )

    def with_one_more(self, key: RunKey, cost: Cost) -> "Account":
        """Return the account after another answer in this run."""
        stated = {key: (cost.epsilon, cost.delta)} if cost.mode == "clients" else {}
        return replace(
            self,
            bare=self.bare + (cost.mode not in NOISY),
            releases=self.releases if cost.release is None else (*self.releases, cost.release),
            stated={**self.stated, **stated},
        )

    def followed_by(self, later: "Account") -> "Account":
        """Return the account of the entries of both, where those of `later` come after these."""
        return Account(
            times={task: self.times.get(task, 0) + later.times.get(task, 0) for task in {*self.times, *later.times}},
            bare=self.bare + later.bare,
            releases=(*self.releases, *later.releases),
            stated={**self.stated, **later.stated},
        )

    def epsilon(self, delta: float) -> float:
        """Return an upper bound of what any example of the site has lost at this delta; infinite without noise.

        The epsilons that servers state are added, as are their deltas; the site's own releases are composed. A server
        speaks of a client that takes part or never does, and the site of an example that is replaced. Where both have
        released something, what servers state is counted for replaced data too.
        """
        stated = list(self.stated.values())
        if self.releases:
            stated = [of_replaced_data(*pair) for pair in stated]
        left = delta - sum(own for _, own in stated)
        if self.bare or left < 0 or (self.releases and left == 0):
            return math.inf
        own = epsilon_of(self.releases, left, Adjacency.EXAMPLE_REPLACED) if self.releases else 0.0
        return own + sum(epsilon for epsilon, _ in stated)


@contextmanager
def _countable() -> Iterator[None]:
    """Refuse entries that have another form than those that a site writes."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the ledger has an entry that cannot be counted ({type(error).__name__}: {error}), so nobody can tell "
            "what the rows have lost; use the version of fftmoe that wrote it"
        ) from error


def _cost_in(entry: Mapping[str, Any]) -> Cost:
    """Return the cost that `Pages.ask` wrote."""
    release = entry.get("release")
    own = None if release is None else Release(**release)
    epsilon = entry.get("epsilon", 0.0)
    return Cost(entry["mode"], own, math.inf if epsilon is None else epsilon, entry.get("delta", 0.0))


@dataclass
class RunningAccount:
    """Keeps the account of a ledger that grows, and the recipes of its runs. Each entry is added up once.

    A list of entries that was read from the file again is another list, so it is added up from its first entry on.
    """

    _entries: Sequence[Mapping[str, Any]] = ()
    _number: int = 0
    _account: Account = field(default_factory=lambda: Account.of(()))
    _recipes: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, entries: Sequence[Mapping[str, Any]]) -> tuple[Account, Mapping[tuple[str, str], str]]:
        """Return the account of these entries, and (server, run) -> the recipe with which the run was opened."""
        if entries is not self._entries:
            self._entries, self._number, self._account, self._recipes = entries, 0, Account.of(()), {}
        if new := entries[self._number :]:
            self._account = self._account.followed_by(Account.of(new))
            with _countable():
                for entry in new:
                    if entry["event"] == OPENED:
                        self._recipes.setdefault((entry["server"], entry["run"]), entry["recipe"])
            self._number = len(entries)
        return self._account, self._recipes
