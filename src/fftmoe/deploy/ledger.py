"""A site's ledger: what it was asked, answered and refused, over all runs and servers, and what that has cost.

What a site spends is counted when it is asked, so an answer that never left counts too. Nothing sets the counts back:
the file notices every change (`store/chained_log.py`), and it must know every run whose state the site keeps.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.deploy.ledger_mark import MARK, check_mark, set_mark
from fftmoe.errors import FftmoeError, InputError
from fftmoe.records import Release
from fftmoe.server.accountant import Adjacency, epsilon_of, of_replaced_data
from fftmoe.setup.policy import NOISY
from fftmoe.setup.site_request import PROFILE
from fftmoe.store.chained_log import ChainedLog

LEDGER_FILE = "ledger.jsonl"
STATE = "state"  # folder of a site with its own state, one folder in it for each run
MOST_FREE = 1000  # entries of each kind a day about what costs nothing, so that no server can fill the disk
MOST_WORDS = 400  # characters of a reason
OPENED, ASKED, ANSWERED, REFUSED, FAILED = "opened", "asked", "answered", "refused", "failed"


@dataclass(frozen=True)
class Cost:
    """What one answer costs the site's rows.

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
    """What a site has given so far.

    Attributes:
        times: how often it was asked for each task, by the names of a policy.
        bare: how often something left without any noise.
        releases: the noisy sums that it made.
        stated: (server, run, recipe) -> the (epsilon, delta) that the recipe states, where the server adds noise.
    """

    times: Mapping[str, int]
    bare: int
    releases: tuple[Release, ...]
    stated: Mapping["RunKey", tuple[float, float]]

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> "Account":
        """The account of these entries of a ledger.

        Raises:
            InputError: an entry lacks what its cost follows from, so the account is unknown.
        """
        try:
            asked = [entry for entry in entries if entry["event"] == ASKED]
            costs = [_cost_in(entry) for entry in asked]
            keys = [(entry["server"], entry["run"], entry["recipe"]) for entry in asked]
            tasks = Counter(entry["task"] for entry in asked)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"the ledger has an entry that cannot be counted ({type(error).__name__}: {error}), so nobody can tell "
                "what the rows have lost; use the version of fftmoe that wrote it"
            ) from error
        return cls(
            times=tasks,
            bare=sum(cost.mode not in NOISY for cost in costs),
            releases=tuple(cost.release for cost in costs if cost.release is not None),
            stated={
                key: (cost.epsilon, cost.delta) for key, cost in zip(keys, costs, strict=True) if cost.mode == "clients"
            },
        )

    def with_one_more(self, key: "RunKey", cost: Cost) -> "Account":
        """The account after another answer in this run."""
        stated = {key: (cost.epsilon, cost.delta)} if cost.mode == "clients" else {}
        return replace(
            self,
            bare=self.bare + (cost.mode not in NOISY),
            releases=self.releases if cost.release is None else (*self.releases, cost.release),
            stated={**self.stated, **stated},
        )

    def epsilon(self, delta: float) -> float:
        """An upper bound of what any example of the site has lost at this delta; infinite without noise.

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


RunKey = tuple[str, str, str]
"""A run: its server, its name, and the digest of its recipe. Two servers may give two runs the same name."""


def _cost_in(entry: Mapping[str, Any]) -> Cost:
    """The cost that `Pages.ask` wrote."""
    release = entry.get("release")
    own = None if release is None else Release(**release)
    epsilon = entry.get("epsilon", 0.0)
    return Cost(entry["mode"], own, math.inf if epsilon is None else epsilon, entry.get("delta", 0.0))


@dataclass(frozen=True)
class SiteLedger:
    """The ledger in a folder, as the site in `site` keeps it; several sites with the same rows may share it."""

    log: ChainedLog
    site: Path

    def begin_or_keep(self) -> bool:
        """Make the ledger if there is none; whether it was made.

        Raises:
            InputError: as `read` and `begin`.
        """
        if self.log.path.exists() or self.log.head.exists():
            self.read()
            return False
        self.begin()
        return True

    def begin(self) -> None:
        """Make the ledger of a site that has answered nothing yet.

        Raises:
            InputError: there is a ledger, or the site has answered before. OutputError: it cannot be written.
        """
        known, mark = _runs_with_state(self.site), self.site / STATE / MARK
        if known or mark.exists():
            raise InputError(
                f"{self.site / STATE} has the state of {len(known)} runs or a mark, so this site has answered before, "
                f"and its ledger {self.log.path} is missing; restore it, or name the folder that has it with `ledger`"
            )
        self.log.begin()

    def read(self) -> list[dict[str, Any]]:
        """All entries.

        Raises:
            InputError: the ledger is missing or damaged, or it is older than the site's own state.
        """
        if not self.log.path.exists() and not self.log.head.exists():
            raise InputError(
                f"{self.log.label} is missing: {self.log.path} does not exist; restore it, or for a site that has "
                "never answered: fftmoe deploy site ledger --begin"
            )
        entries = self.log.read()
        unknown = _runs_with_state(self.site) - {entry.get("run") for entry in entries if entry["event"] == OPENED}
        if unknown:
            raise InputError(
                f"{self.log.path} does not know the runs {', '.join(sorted(unknown))[:200]} in {self.site / STATE}, so "
                "it is not the ledger that this site kept; restore the newest one"
            )
        check_mark(self.log, self.site / STATE)
        return entries

    @contextmanager
    def locked(self) -> Iterator["Pages"]:
        """The ledger, to which no other process writes while the block runs.

        Raises:
            InputError: as `read`. OutputError: it cannot be written.
        """
        with self.log.locked():
            yield Pages(self.log, self.read())
            set_mark(self.log, self.site / STATE)

    def note(self, event: str, **values: Any) -> None:
        """Write an entry that costs nothing; of those, `MOST_FREE` a day are written.

        A ledger that cannot be written does not hide the error that is noted; the next request is refused for it.
        """
        try:
            with self.locked() as pages:
                pages.note(event, **values)
        except FftmoeError:
            pass


@dataclass(frozen=True)
class Pages:
    """A ledger that is held: its entries, and how to add to them."""

    log: ChainedLog
    entries: Sequence[Mapping[str, Any]]

    @property
    def account(self) -> Account:
        """What the site has given so far."""
        return Account.of(self.entries)

    def recipe_of(self, server: str, run: str) -> str | None:
        """The digest of the recipe with which this run of this server was opened; None for a new run."""
        opened = (entry for entry in self.entries if entry["event"] == OPENED)
        return next((entry["recipe"] for entry in opened if (entry["server"], entry["run"]) == (server, run)), None)

    def open(self, key: RunKey, name: str) -> None:
        """Write that a run is served for the first time; it is on the disk when this returns.

        Raises:
            InputError: too many runs were opened today.
        """
        if self._today(OPENED) >= MOST_FREE:
            raise InputError(f"{MOST_FREE} runs were opened today, and no more are; wait until tomorrow")
        self._add(OPENED, durable=True, **_key_values(key), name=name[:MOST_WORDS])

    def ask(self, key: RunKey, task: str, round: int, size: int, cost: Cost) -> None:
        """Count a request that will be carried out. It is forced to the disk with its answer."""
        values: dict[str, Any] = {"mode": cost.mode}
        if cost.release is not None:
            values["release"] = asdict(cost.release)
        if cost.mode == "clients":
            values |= {"epsilon": cost.epsilon if math.isfinite(cost.epsilon) else None, "delta": cost.delta}
        self._add(ASKED, durable=False, **_key_values(key), task=task, round=round, bytes=size, **values)

    def answer(self, run: str, task: str, round: int, size: int) -> None:
        """Write that an answer leaves; it is on the disk when this returns.

        Raises:
            InputError: the site has described itself too often today.
        """
        if task == PROFILE and self._today(ANSWERED, PROFILE) >= MOST_FREE:
            raise InputError(f"{MOST_FREE} profiles were sent today, and no more are; wait until tomorrow")
        self._add(ANSWERED, durable=True, run=run, task=task, round=round, bytes=size)

    def note(self, event: str, **values: Any) -> None:
        """See `SiteLedger.note`; the same entry as the last one is not repeated."""
        short = {name: value[:MOST_WORDS] if isinstance(value, str) else value for name, value in values.items()}
        last = self.entries[-1] if self.entries else {}
        if all(last.get(name) == value for name, value in {"event": event, **short}.items()):
            return
        if (today := self._today(event)) < MOST_FREE:
            more = {"note": f"no more of today's entries {event!r} are written"} if today == MOST_FREE - 1 else {}
            self._add(event, durable=False, **short, **more)

    def _today(self, event: str, task: str | None = None) -> int:
        """How many entries of this kind were written today."""
        day, number = _now()[:10], 0
        for entry in reversed(self.entries):
            if entry["at"][:10] != day:
                break
            number += entry["event"] == event and task in (None, entry.get("task"))
        return number

    def _add(self, event: str, durable: bool, **values: Any) -> None:
        self.log.append({"at": _now(), "event": event, **values}, durable)


def ledger_in(place: Path, site: Path) -> SiteLedger:
    """The ledger in the folder `place` of the site in `site`."""
    return SiteLedger(_log_in(place.absolute()), site)


@lru_cache(maxsize=4)
def _log_in(place: Path) -> ChainedLog:
    """A process keeps what it has read of a ledger, because a long one takes a while to read."""
    return ChainedLog(place / LEDGER_FILE, "this site's ledger")


def _key_values(key: RunKey) -> dict[str, str]:
    return dict(zip(("server", "run", "recipe"), key, strict=True))


def _runs_with_state(site: Path) -> set[str]:
    folder = site / STATE
    return {path.name for path in folder.iterdir() if path.name != MARK} if folder.is_dir() else set()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
