"""A site that takes part in runs: its operator's settings, and the client that it opens for the server's job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.client.screening import screen_plan
from fftmoe.deploy.job import read_job
from fftmoe.engines.failures import Failure, failing_as
from fftmoe.setup.deployment import SiteProfile
from fftmoe.setup.site import SiteClient, make_site_client
from fftmoe.store import ClientStateFiles


@dataclass(frozen=True)
class SiteSettings:
    """The settings of a site, which its operator chooses.

    Attributes:
        name: name of the site in the deployment. client_id: its index among the clients.
        data: the folder with its `train.*`; no other data of the machine is read.
        budget: a tier of the recipe; `auto` for the largest tier that this machine can hold; or limits such as
            `memory_mib=300,gflops=5`.
        folder: where the site keeps its state.
        model: a folder with the backbone; None for the one that the recipe names.
    """

    name: str
    client_id: int
    data: Path
    budget: str
    folder: Path
    model: str | None = None


@dataclass(frozen=True)
class OpenSite:
    """A site that has opened its client for a job."""

    settings: SiteSettings
    client: SiteClient

    def __call__(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Answer messages to this site's own client.

        Raises:
            CodedError: a message is for another client, or asks for something that the site has not agreed to.
        """
        with failing_as(Failure.REFUSED):
            for message in messages:
                screen_plan(message, self.client.agreed)
        return self.client.runtime(messages)

    @property
    def profile(self) -> dict[str, Any]:
        """The site's profile as JSON values; it holds no label and no text."""
        client = self.client
        settings = self.settings
        found = SiteProfile(settings.name, settings.client_id, client.agreed.tier, client.num_examples, client.backbone)
        return asdict(found)


def open_site(settings: SiteSettings, job: Mapping[str, Any]) -> OpenSite:
    """Open the site's client for this job; a process keeps it as long as the job stays the same.

    Raises:
        CodedError: the job is not valid, or the site's data, budget or model does not fit it.
    """
    return _open_for(settings, json.dumps(job, sort_keys=True))


@lru_cache(maxsize=1)
def _open_for(settings: SiteSettings, text: str) -> OpenSite:
    with failing_as(Failure.RECIPE):
        job = read_job(json.loads(text))
    folder = settings.folder / "state" / job["run"]
    with failing_as(Failure.DISK):
        folder.mkdir(parents=True, exist_ok=True)
    client = make_site_client(
        job["recipe"],
        tuple(job["labels"]),
        client_id=settings.client_id,
        data=settings.data,
        budget=settings.budget,
        model=settings.model,
        states=ClientStateFiles(folder),
    )
    return OpenSite(settings, client)
