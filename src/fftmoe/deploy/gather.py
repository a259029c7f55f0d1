"""Waits for the sites of a run, and collects their profiles."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fftmoe.deploy.job import read_profile
from fftmoe.engines.flower import ask
from fftmoe.errors import InputError, RunError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import SiteProfile

ASK_SECONDS = 120.0  # for a site to load its backbone and its data
LOOK_SECONDS = 1.0  # between two looks for sites that have connected


@dataclass
class RollCall:
    """The sites that have answered so far.

    Attributes:
        nodes: site -> its node. client_ids: site -> its index among the clients, for every site of the federation.
        job: see `make_job`.
        profiles: site -> its profile. refused: site -> why it cannot join, as it was last reported.
    """

    grid: Grid
    nodes: Mapping[str, int]
    client_ids: Mapping[str, int]
    job: Mapping[str, Any]
    progress: Progress
    profiles: dict[str, SiteProfile] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every site has a profile."""
        return self.profiles.keys() == self.client_ids.keys()

    def look(self) -> None:
        """Ask the sites that are connected and have not answered yet."""
        connected = set(self.grid.get_node_ids())
        new = {n: site for site, n in self.nodes.items() if n in connected and site not in self.profiles}
        for node, answer in ask(self.grid, list(new), self.job, ASK_SECONDS).items():
            site = new[node]
            profile = _profile_of(answer, site, self.client_ids[site])
            if isinstance(profile, str):
                if self.refused.get(site) != profile:
                    self.progress.say(f"site {site} cannot join: {profile}")
                self.refused[site] = profile
                continue
            self.profiles[site] = profile
            self.progress.say(f"site {site} is here: budget {profile.tier}, {profile.num_examples} examples")


def gather(call: RollCall, known: Mapping[str, SiteProfile], wait_seconds: float) -> dict[str, SiteProfile]:
    """The profile of every site: a new one from each site that answers in time, otherwise the known one.

    Raises:
        RunError: a site that is not known did not answer in time.
    """
    ends = time.monotonic() + wait_seconds
    call.progress.say(f"waiting for {len(call.client_ids)} sites: {', '.join(call.client_ids)}")
    while not call.is_complete and time.monotonic() < ends:
        call.look()
        if not call.is_complete:
            time.sleep(LOOK_SECONDS)
    unknown = [site for site in call.client_ids if site not in call.profiles and site not in known]
    if unknown:
        reasons = "; ".join(f"{site}: {call.refused.get(site, 'it did not connect')}" for site in unknown)
        raise RunError(
            f"not all sites answered within {wait_seconds:g} s ({reasons}); start them, then run this command again"
        )
    return {site: call.profiles.get(site) or known[site] for site in call.client_ids}


def _profile_of(answer: Any, site: str, client_id: int) -> SiteProfile | str:
    """The site's profile, or why it cannot join."""
    if isinstance(answer, str):
        return answer
    try:
        profile = read_profile(answer)
    except InputError as error:
        return str(error)
    if (profile.site, profile.client_id) != (site, client_id):
        return (
            f"the node with the key of site {site} (client {client_id}) calls itself {profile.site!r:.99} (client "
            f"{profile.client_id}); give each site the folder that was made for it"
        )
    return profile
