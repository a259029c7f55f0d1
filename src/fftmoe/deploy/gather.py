"""Waits for the sites of a run, and collects their profiles."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fftmoe.deploy.job import read_profile
from fftmoe.engines.flower import Unreadable, ask
from fftmoe.errors import InputError, RunError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import SiteProfile
from fftmoe.shown import count_of

ASK_SECONDS = 120.0  # for a site to load its backbone and its data
CONNECTED_POLL_SECONDS = 1.0  # between two looks for sites that have connected


@dataclass(frozen=True)
class Gathered:
    """Says who takes part in a run.

    Attributes:
        profiles: site -> its profile, for every site that takes part.
        excluded: site -> why the run goes on without it: what it said about itself cannot be true.
    """

    profiles: dict[str, SiteProfile]
    excluded: dict[str, str]


@dataclass
class RollCall:
    """Collects the sites that have answered so far.

    Attributes:
        nodes: site -> its node. client_ids: site -> its index among the clients, for every site of the federation.
        job: see `make_job`. tiers: the names of the recipe's budgets.
        known: site -> its profile, as the run knows it from before an interruption.
        profiles: site -> its profile. refused: site -> why it cannot join, as it last reported.
        invalid: site -> why its profile is not believed, or cannot be read.
    """

    grid: Grid
    nodes: Mapping[str, int]
    client_ids: Mapping[str, int]
    job: Mapping[str, Any]
    tiers: Collection[str]
    known: Mapping[str, SiteProfile]
    progress: Progress
    profiles: dict[str, SiteProfile] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Return whether every site has a profile."""
        return self.profiles.keys() == self.client_ids.keys()

    def look(self) -> None:
        """Ask the sites that are connected and have not answered yet."""
        connected = set(self.grid.get_node_ids())
        new = {n: site for site, n in self.nodes.items() if n in connected and site not in self.profiles}
        for node, answer in ask(self.grid, list(new), self.job, ASK_SECONDS).items():
            self._enter(new[node], answer)

    def _enter(self, site: str, answer: Any) -> None:
        """Enter what a site has answered: its profile, why it cannot join, or that the answer cannot be read."""
        before = self.refused.pop(site, None), self.invalid.pop(site, None)
        if isinstance(answer, Unreadable):
            self.invalid[site] = answer
        elif isinstance(answer, str):
            self.refused[site] = answer
        else:
            try:
                profile = self._screened(site, answer)
            except InputError as error:
                self.invalid[site] = str(error)
            else:
                self.profiles[site] = profile
                self.progress.say(
                    f"site {site} is here: budget {profile.tier}, {count_of(profile.num_examples, 'example')}"
                )
                return
        reasons = self.refused.get(site), self.invalid.get(site)
        if reasons != before:
            self.progress.say(f"site {site} cannot join: {reasons[0] or reasons[1]}")

    def _screened(self, site: str, values: Any) -> SiteProfile:
        """Return a site's profile, if it can be true.

        Raises:
            InputError: it is malformed, is another site's, names a tier that the recipe does not have, or contradicts
                what the site said before.
        """
        profile, client_id = read_profile(values), self.client_ids[site]
        if (profile.site, profile.client_id) != (site, client_id):
            raise InputError(
                f"the node with the key of site {site} (client {client_id}) calls itself {profile.site!r:.99} (client "
                f"{profile.client_id}); give each site the folder that was made for it"
            )
        if profile.tier not in self.tiers:
            raise InputError(f"it has budget {profile.tier!r:.99}; the recipe has {', '.join(self.tiers)}")
        if (said := self.known.get(site)) is not None and said != profile:
            raise InputError(
                f"it says {_figures(profile)}, but said {_figures(said)} when the run began; start a new run for "
                "other data, another budget or another backbone"
            )
        return profile


def _figures(profile: SiteProfile) -> str:
    return f"{count_of(profile.num_examples, 'example')}, budget {profile.tier!r:.99}, backbone {profile.backbone}"


def gather(call: RollCall, wait_seconds: float) -> Gathered:
    """Return the profile of every site: a new one from each site that answers in time, otherwise the known one.

    A site whose profile cannot be true is left out, and the others go on: no site's word may end the run.

    Raises:
        RunError: a site that is not known did not connect in time, or refuses; or no site is left.
    """
    ends = time.monotonic() + wait_seconds
    call.progress.say(f"waiting for {count_of(len(call.client_ids), 'site')}: {', '.join(call.client_ids)}")
    while not call.is_complete and time.monotonic() < ends:
        call.look()
        if not call.is_complete:
            time.sleep(CONNECTED_POLL_SECONDS)
    profiles = {**call.known, **call.profiles}
    excluded = {site: reason for site, reason in call.invalid.items() if site not in profiles}
    missing = [site for site in call.client_ids if site not in profiles and site not in excluded]
    if missing or not profiles:
        reasons = {site: call.refused.get(site, "it did not connect") for site in missing} | excluded
        listed = "; ".join(f"{site}: {reason}" for site, reason in reasons.items())
        raise RunError(
            f"not all sites answered within {wait_seconds:g} s ({listed}); start them, then run this command again"
        )
    return Gathered({site: profiles[site] for site in call.client_ids if site in profiles}, excluded)
