"""Prints a site's ledger: every entry, and what the site has given of what its policy grants."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fftmoe.deploy.door import read_policy
from fftmoe.deploy.ledger import ledger_of
from fftmoe.deploy.ledger_account import ANSWERED, ASKED, FAILED, OPENED, REFUSED, Account
from fftmoe.errors import InputError
from fftmoe.server.accountant import Adjacency
from fftmoe.setup.policy import SitePolicy
from fftmoe.setup.site_request import TRAINING
from fftmoe.shown import count_of


def describe_ledger(site: Path) -> list[str]:
    """Return the lines of `fftmoe deploy site ledger`.

    Raises:
        InputError: the policy or the ledger is missing or damaged.
    """
    policy = read_policy(site)
    entries = ledger_of(site, policy).read()
    return [*map(_entry_line, entries), *totals(policy, entries)]


def totals(policy: SitePolicy, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what was asked, answered and refused, and what is left of what the policy grants."""
    numbers = {
        event: sum(entry["event"] == event for entry in entries) for event in (OPENED, ANSWERED, REFUSED, FAILED)
    }
    sent = sum(entry["bytes"] for entry in entries if entry["event"] == ANSWERED)
    account = Account.of(entries)
    yield (
        f"{count_of(numbers[OPENED], 'run')}; {count_of(numbers[ANSWERED], 'answer')}, {count_of(sent, 'byte')}; "
        f"{count_of(numbers[REFUSED], 'refusal')}; {count_of(numbers[FAILED], 'failure')}"
    )
    yield f"trained {count_of(account.times.get(TRAINING, 0), 'time')} of {policy.most_rounds} that the policy grants"
    if policy.privacy.epsilon is not None and policy.privacy.delta is not None:
        spent = account.epsilon(policy.privacy.delta)
        yield f"spent an epsilon of {spent:.4g} of {policy.privacy.epsilon:g}, at delta {policy.privacy.delta:g}"
        own = Adjacency.EXAMPLE_REPLACED if account.releases else Adjacency.CLIENT_ADDED_OR_REMOVED
        yield f"compared are data in which {own}"
    elif account.bare:
        yield f"{count_of(account.bare, 'answer')} without noise, so no epsilon bounds what the rows have lost"


def begin_ledger(site: Path) -> str:
    """Make the ledger of a site that has answered nothing yet, and return what was done.

    Raises:
        InputError: there is a ledger, or the site has answered before.
    """
    policy = read_policy(site)
    place = site / policy.ledger
    if not place.is_dir():
        raise InputError(f"the folder {place} of `ledger` does not exist; make it, and keep it from other users")
    ledger = ledger_of(site, policy)
    ledger.begin()
    return f"began {ledger.log.path}"


def _entry_line(entry: Mapping[str, Any]) -> str:
    """Return one entry for a person; what a server sent is quoted."""
    event, parts = entry["event"], [f"{entry['at'][:19].replace('T', ' ')} {entry['event']}"]
    if entry.get("task") is not None:
        parts.append(f"{entry['task']}, round {entry['round']}")
    parts.append(f"run {entry.get('run')!r:.80}")
    if event in (OPENED, ASKED):
        parts.append(f"recipe {entry['recipe']} of {entry['server'] or 'the server'}")
    if event in (ASKED, ANSWERED):
        parts.append(count_of(entry["bytes"], "byte"))
    if release := entry.get("release"):
        parts.append(
            f"noise {release['noise_multiplier']:g} at sampling rate {release['sampling_rate']:.3g}, "
            f"{count_of(release['times'], 'time')}"
        )
    if event in (REFUSED, FAILED):
        parts.append(f"code {entry['code']}: {entry['why']!r}")
    return "; ".join(parts)
