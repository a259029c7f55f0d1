"""Keeps a site's ledger: what it was asked, answered and refused, over all runs and servers, and what that has cost.

What a site spends is counted when it is asked, so an answer that never left counts too. Nothing sets the counts back:
the file notices every change (`store/chained_log.py`), and it must know every run whose state the site keeps.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.deploy.ledger_account import ANSWERED, ASKED, OPENED, Account, Cost, RunKey, RunningAccount
from fftmoe.deploy.ledger_mark import MARK, check_mark, outside_mark, set_mark
from fftmoe.errors import FftmoeError, InputError
from fftmoe.setup.policy import SitePolicy
from fftmoe.setup.site_request import PROFILE
from fftmoe.shown import count_of, quoted
from fftmoe.store.chained_log import ChainedLog

LEDGER_FILE = "ledger.jsonl"
STATE = "state"  # folder of a site with its own state, one folder in it for each run
MOST_FREE = 1000  # entries of each kind a day about what costs nothing, so that no server can fill the disk
LONGEST_TEXT = 400  # characters of a reason


@dataclass(frozen=True)
class SiteLedger:
    """Keeps the ledger in a folder for the site in `site`; several sites with the same rows may share it.

    Attributes:
        mark: a file outside the site's folder that says how far the ledger was; None without one.
    """

    log: ChainedLog
    running: RunningAccount
    site: Path
    mark: Path | None = None

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
        known = _runs_with_state(self.site)
        if known or any(mark.exists() for mark, _ in self._marks):
            raise InputError(
                f"{self.site / STATE} has the state of {count_of(len(known), 'run')}, or there is a mark, so this site "
                f"has answered before, and its ledger {self.log.path} is missing; restore it, or name the folder that "
                "has it with `ledger`"
            )
        self.log.begin()

    def read(self) -> list[dict[str, Any]]:
        """Return all entries.

        Raises:
            InputError: the ledger is missing or damaged, or it is older than the site's own state.
        """
        if not self.log.path.exists() and not self.log.head.exists():
            raise InputError(
                f"{self.log.label} is missing: {self.log.path} does not exist; restore it, or for a site that has "
                f"never answered: fftmoe deploy site ledger --begin --site {quoted(self.site)}"
            )
        entries = self.log.read()
        _, recipes = self.running.of(entries)
        unknown = _runs_with_state(self.site) - {run for _, run in recipes}
        if unknown:
            raise InputError(
                f"{self.log.path} does not know the runs {', '.join(sorted(unknown))[:200]} in {self.site / STATE}, so "
                "it is not the ledger that this site kept; restore the newest one"
            )
        for mark, is_needed in self._marks:
            check_mark(self.log, mark, is_needed)
        return entries

    @contextmanager
    def locked(self) -> Iterator["Pages"]:
        """Give the ledger, to which no other process writes while the block runs.

        Raises:
            InputError: as `read`. OutputError: it cannot be written.
        """
        with self.log.locked():
            entries = self.read()
            if not entries and self.mark is not None:  # one that cannot be made must stop the first entry: later,
                set_mark(self.log, self.mark)  # its lack would refuse all until a person makes it
            yield Pages(self.log, self.running, entries)
            for mark, _ in self._marks:
                set_mark(self.log, mark)

    def note(self, event: str, **values: Any) -> None:
        """Write an entry that costs nothing; of those, `MOST_FREE` a day are written.

        A ledger that cannot be written does not hide the error that is noted; the next request is refused for it.
        """
        try:
            with self.locked() as pages:
                pages.note(event, **values)
        except FftmoeError:
            pass

    @property
    def _marks(self) -> list[tuple[Path, bool]]:
        """Return the marks, and whether each must be there if the ledger has any line."""
        own = [(self.site / STATE / MARK, False)]
        return own if self.mark is None else [*own, (self.mark, True)]


@dataclass(frozen=True)
class Pages:
    """Holds the entries of a ledger that is locked, and adds to them."""

    log: ChainedLog
    running: RunningAccount
    entries: Sequence[Mapping[str, Any]]

    @property
    def account(self) -> Account:
        """Return what the site has given so far."""
        return self.running.of(self.entries)[0]

    def recipe_of(self, server: str, run: str) -> str | None:
        """Return the digest of the recipe with which this run of this server was opened; None for a new run."""
        return self.running.of(self.entries)[1].get((server, run))

    def open(self, key: RunKey, name: str) -> None:
        """Write that a run is served for the first time; it is on the disk when this returns.

        Raises:
            InputError: too many runs were opened today.
        """
        if self._today(OPENED) >= MOST_FREE:
            raise InputError(f"{MOST_FREE} runs were opened today, and no more are; wait until tomorrow")
        self._add(OPENED, durable=True, **_key_values(key), name=name[:LONGEST_TEXT])

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
        short = {name: value[:LONGEST_TEXT] if isinstance(value, str) else value for name, value in values.items()}
        last = self.entries[-1] if self.entries else {}
        if all(last.get(name) == value for name, value in {"event": event, **short}.items()):
            return
        if (today := self._today(event)) < MOST_FREE:
            more = {"note": f"no more of today's entries {event!r} are written"} if today == MOST_FREE - 1 else {}
            self._add(event, durable=False, **short, **more)

    def _today(self, event: str, task: str | None = None) -> int:
        """Return how many entries of this kind were written today.

        Entries of later days are passed over: the clock was ahead when they were written.
        """
        day, number = time_now()[:10], 0
        for entry in reversed(self.entries):
            if entry["at"][:10] < day:
                break
            is_counted = entry["event"] == event and task in (None, entry.get("task"))
            number += is_counted and entry["at"][:10] == day
        return number

    def _add(self, event: str, durable: bool, **values: Any) -> None:
        self.log.append({"at": time_now(), "event": event, **values}, durable)


def ledger_of(site: Path, policy: SitePolicy) -> SiteLedger:
    """Return the ledger that the policy of the site in `site` names, with the mark that it names.

    Raises:
        InputError: the mark could not notice an older copy of the site's folder.
    """
    return ledger_in(site / policy.ledger, site, outside_mark(site, policy.mark))


def ledger_in(place: Path, site: Path, mark: Path | None = None) -> SiteLedger:
    """Return the ledger in the folder `place` of the site in `site`; see `SiteLedger`."""
    return SiteLedger(*kept_ledger(place.absolute()), site, mark)


@lru_cache(maxsize=4)
def kept_ledger(place: Path) -> tuple[ChainedLog, RunningAccount]:
    """Keep what this process has read of a ledger and added up, because a long one takes a while."""
    return ChainedLog(place / LEDGER_FILE, "this site's ledger"), RunningAccount()


def _key_values(key: RunKey) -> dict[str, str]:
    return dict(zip(("server", "run", "recipe"), key, strict=True))


def _runs_with_state(site: Path) -> set[str]:
    folder = site / STATE
    return {path.name for path in folder.iterdir() if path.name != MARK} if folder.is_dir() else set()


def time_now() -> str:
    """Return the time as the ledger writes it: UTC with milliseconds, in the form of ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
