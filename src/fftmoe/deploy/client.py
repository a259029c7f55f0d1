"""Runs a site of a federation: it first prints what it will do, then serves until it is stopped."""

import hashlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fftmoe
from fftmoe.data.read import read_folder
from fftmoe.data.text_encodings import TextEncoding, encoding_option
from fftmoe.data.undivided import read_undivided
from fftmoe.deploy.account import totals
from fftmoe.deploy.certificates import expiry_warning
from fftmoe.deploy.door import read_policy
from fftmoe.deploy.folder import SiteFolder, read_site
from fftmoe.deploy.ledger import ledger_of
from fftmoe.deploy.link.node import serve_node
from fftmoe.deploy.running import running
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.engines.flower_messages import make_client_app
from fftmoe.errors import InputError
from fftmoe.setup.policy import SitePolicy
from fftmoe.shown import count_of

Say = Callable[[str], None]


def run_client(
    folder: Path,
    data: Path,
    budget: str,
    model: str | None,
    say: Say,
    accept_changes: bool = False,
    encoding: str | None = None,
) -> None:
    """Join the federation of this site's folder, and serve it until SIGTERM or SIGINT.

    Args:
        folder: the folder `sites/<name>` of the deployment.
        data: the folder with the site's own `train.*`.
        budget, model, accept_changes, encoding: see `SiteSettings`.
        say: shows a line to a person.

    Raises:
        InputError: the folder or the data cannot be used, or the site has no policy or no ledger.
        RunError: the server refuses this site.
    """
    stated = encoding_option(encoding)
    site = read_site(folder)
    settings = SiteSettings(
        name=site.name,
        client_id=site.client_id,
        data=data.absolute(),
        budget=budget,
        folder=folder.absolute(),
        model=model,
        server=site.address,
        accept_changes=accept_changes,
        encoding=encoding,
    )
    policy = read_policy(site.folder)
    entries = ledger_of(site.folder, policy).read()
    if warning := expiry_warning(site.ca, "the deployment's certificate"):
        say(warning)
    for line in (*_statement(site, settings, _num_rows(data, stated)), *_agreement(policy, entries)):
        say(line)
    app = make_client_app(
        lambda job, context: open_site(settings, job), lambda job, context: open_site(settings, job).describe()
    )
    ended = set_by_signals()
    with running(folder, {"address": site.address, "data": str(settings.data)}):
        serve_node(site.address, site.ca, site.key, app, {}, memory=folder / "node.json", stop=ended.is_set, say=say)
    say("left the federation")


def set_by_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    return ended


def _num_rows(data: Path, encoding: TextEncoding) -> int:
    """Return the number of training rows in the folder, which is read before the site connects.

    Raises:
        InputError: the folder has no readable `train.*`.
    """
    if not data.is_dir():
        raise InputError(
            f"--data {data} is not a folder; name the folder with this site's train.csv, .tsv, .jsonl, .json or "
            ".parquet"
        )
    whole = read_undivided(data, encoding)
    return (whole or read_folder(data, ("train",), encoding)["train"]).num_rows


def _statement(site: SiteFolder, settings: SiteSettings, num_rows: int) -> list[str]:
    """Return what the operator agrees to by not stopping the site."""
    fingerprint = hashlib.sha256(site.ca).hexdigest()
    return [
        f"site {site.name} (client {site.client_id}) joins {site.address}",
        "  by TLS; it trusts only the certificate authority in",
        f"          {site.folder / 'ca.crt'} (SHA-256 {fingerprint[:16]}…), and signs its messages with node.key",
        f"  runs    fftmoe {fftmoe.__version__} as it is installed here; no code is taken from the server",
        f"  reads   {count_of(num_rows, 'row')} of {settings.data}/train.*, and the backbone "
        + (f"in {settings.model}" if settings.model else "that the recipe names"),
        f"  budget  {settings.budget}",
        "  sends   the number of its rows, its budget, and in each round: the deltas of the experts that it trained,",
        "          of the shared parts and of the head, how many tokens each expert got, and the training loss; for a",
        "          closed-form head also feature statistics, summed over examples. Never a text, image or label",
        f"  keeps   its own state in {settings.folder / 'state'}, which is not sent",
        "  note    an adapter is not anonymous: what is sent can reveal something about the training data",
    ]


def _agreement(policy: SitePolicy, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the site's policy allows, and what its ledger has counted; both are read again for every request."""
    first, *more = totals(policy, entries)
    return [
        f"  allows  {', '.join(policy.tasks) or 'nothing'}, for {len(policy.recipes)} approved recipes"
        + (" and those within `fields`" if policy.fields else ""),
        f"  ledger  {first}",
        *(f"          {line}" for line in more),
    ]
