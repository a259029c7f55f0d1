"""Defines a site that takes part in runs: its operator's settings,
and the client that it opens for the server's job.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fftmoe.client.screening import screen_plan
from fftmoe.deploy.door import Admitted, Door
from fftmoe.deploy.ledger import STATE
from fftmoe.engines.failures import Failure, failing_as
from fftmoe.setup.deployment import SiteProfile
from fftmoe.setup.site import SiteClient, make_site_client
from fftmoe.setup.site_request import SUMS
from fftmoe.shown import count_of
from fftmoe.store import Bindings, ClientStateFiles
from fftmoe.store.bindings import BINDINGS_FILE, differences, require_same
from fftmoe.store.files import disk_errors, make_folder
from fftmoe.strict import exact_json


@dataclass(frozen=True)
class SiteSettings:
    """Holds the settings of a site, which its operator chooses.

    Attributes:
        name: name of the site in the deployment. client_id: its index among the clients.
        data: the folder with its `train.*`; no other data of the machine is read.
        encoding: of its text files that are not UTF-8.
        budget: a tier of the recipe; `auto` for the largest tier that this machine can hold; or limits such as
            `memory_mib=300,gflops=5`.
        folder: with its policy, its ledger and its state.
        model: a folder with the backbone; None for the one that the recipe names.
        server: the address of the server, for the ledger.
        accept_changes: take part in a run with other data or another backbone than those it began with.
    """

    name: str
    client_id: int
    data: Path
    budget: str
    folder: Path
    model: str | None = None
    server: str = ""
    accept_changes: bool = False
    encoding: str | None = None


@dataclass(frozen=True)
class OpenSite:
    """Holds a site that has opened its client for a job that its policy allows."""

    settings: SiteSettings
    client: SiteClient
    door: Door
    admitted: Admitted

    def __call__(self, messages: Sequence[bytes]) -> Sequence[bytes]:
        """Answer a message to this site's own client; it is counted before it is carried out.

        Raises:
            CodedError: the message is for another client, asks for something that the site has not agreed to, or would
                cost more than the policy grants; or the answer could not be written into the ledger.
        """
        with self.door.failures_noted(self.admitted), failing_as(Failure.REFUSED):
            [message] = messages  # a site has one client
            asked = screen_plan(message, self.client.agreed)
        with self.door.failures_noted(self.admitted, asked), failing_as(Failure.DISK):
            self._bind()
        self.door.count(self.admitted, asked, self.client.rows, len(message))
        runtime = replace(self.client.runtime, fewest_of_label=self.admitted.fewest_of_label)  # by today's policy
        with self.door.failures_noted(self.admitted, asked), failing_as(Failure.TRAINING):
            [reply] = runtime([message])
        self.door.answered(self.admitted, asked, len(reply))
        return [reply]

    def _bind(self) -> None:
        """Write down what the site has, when it takes part in a run for the first time.

        Its state may have been removed since the client was opened. Then the site goes on as one without a state, which
        it would also be after a restart.
        """
        folder = _state_of(self.settings, self.admitted.run)
        if (folder / BINDINGS_FILE).exists():
            return
        with disk_errors(folder):
            if not folder.is_dir():
                logging.getLogger("fftmoe").warning(
                    "%s was removed, so this site goes on in the run without what it kept there", folder
                )
                make_folder(folder)
        Bindings(self.client.bindings).write(folder)

    def describe(self) -> dict[str, Any]:
        """Return the site's profile as JSON values, which is written into the ledger; it holds no label and no text.

        Raises:
            CodedError: the site has too few rows, or what the policy grants is used up.
        """
        client, settings = self.client, self.settings
        num_examples = self.door.count_profile(self.admitted, client.rows)
        self._say_what_is_left_out()
        found = SiteProfile(settings.name, settings.client_id, client.agreed.tier, num_examples, client.backbone)
        return asdict(found)

    def _say_what_is_left_out(self) -> None:
        """Tell the site's operator how many rows its policy keeps out of feature statistics."""
        rows, fewest = self.client.rows, self.admitted.fewest_of_label
        if SUMS in self.admitted.request.tasks and (left_out := rows.trained - rows.behind(SUMS, fewest)):
            rare = sum(0 < number < fewest for number in rows.by_label)
            logging.getLogger("fftmoe").warning(
                "no feature statistics hold %d of %s: the policy has fewest_rows_of_label=%g, and %s fewer rows",
                left_out,
                count_of(rows.trained, "row"),
                fewest,
                f"{count_of(rare, 'label')} {'has' if rare == 1 else 'have'}",
            )


def open_site(settings: SiteSettings, job: Mapping[str, Any]) -> OpenSite:
    """Open the site's client for this job if the site's policy allows it.

    The policy is asked for every request. A process keeps the client as long as the job stays the same.

    Raises:
        CodedError: the job is not valid, the policy does not allow it, or the site's data, budget or model does not fit
            it. The site's ledger has the reason.
    """
    door = Door(settings.folder, settings.model is not None, settings.server)
    admitted = door.admit(job)
    with door.failures_noted(admitted):
        return OpenSite(settings, opened_for(settings, exact_json(job, sort_keys=True)), door, admitted)


@lru_cache(maxsize=1)
def opened_for(settings: SiteSettings, text: str) -> SiteClient:
    """Return the client of a job, given as JSON; a process keeps that of its last job,
    because loading a model takes long.
    """
    job = json.loads(text)
    folder = _state_of(settings, job["run"])
    with failing_as(Failure.DISK):
        folder.mkdir(0o700, parents=True, exist_ok=True)
    client = make_site_client(
        job["recipe"],
        tuple(job["labels"]),
        client_id=settings.client_id,
        data=settings.data,
        encoding=settings.encoding,
        budget=settings.budget,
        model=settings.model,
        states=ClientStateFiles(folder),
    )
    with failing_as(Failure.CHANGED):
        _check_bindings(folder, client.bindings, settings.accept_changes)
    return client


def _state_of(settings: SiteSettings, run: str) -> Path:
    """Return where a site keeps its state of a run."""
    return settings.folder / STATE / run


def _check_bindings(folder: Path, now: Mapping[str, Any], accept: bool) -> None:
    """Compare what the site has with what it had when it first took part, which only its disk knows.

    Raises:
        InputError: something has changed that the site's operator has not accepted.
    """
    began = Bindings.read(folder)
    if began is None:  # the site has not taken part yet
        return
    accepted = require_same(
        f"this site cannot go on in the run {folder.name}",
        differences(began.values, now),
        accept,
        "restore what it joined with, or leave the run",
    )
    for words in accepted:
        logging.getLogger("fftmoe").warning("accepted for the run %s: %s", folder.name, words)
    if accepted:
        Bindings(now, (*began.accepted, *accepted)).write(folder)
