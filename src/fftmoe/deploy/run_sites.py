"""Keeps the sites of a run, as its folder remembers them: an interrupted run continues with the same ones."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fftmoe.deploy.job import read_profile
from fftmoe.errors import InputError
from fftmoe.setup.deployment import SiteProfile
from fftmoe.shown import quoted
from fftmoe.store import SITES, Bindings, write_atomically
from fftmoe.store.bindings import differences, require_same
from fftmoe.strict import exact_json, read_small, strict_json


@dataclass(frozen=True)
class RunSites:
    """Holds the run's own random name, under which sites keep their state, and each site's profile by its name."""

    run: str
    profiles: dict[str, SiteProfile]

    @classmethod
    def read(cls, output: Path) -> "RunSites":
        """Return the sites of the interrupted run in `output`; a new name and no sites if there is no run.

        Raises:
            InputError: the folder holds a run without sites, or its file is damaged.
        """
        if not (output / "config.yaml").exists():
            return cls(uuid.uuid4().hex, {})
        path = output / SITES
        if not path.exists():
            raise InputError(
                f"the run in {output} was not started with `fftmoe deploy`; continue it with `fftmoe resume "
                f"{quoted(output)}`"
            )
        try:
            values = strict_json(read_small(path))
            return cls(values["run"], {name: read_profile(profile) for name, profile in values["profiles"].items()})
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error}; restore the file, or start a new run") from error

    def write(self, output: Path) -> None:
        """Write the file into the run's folder."""
        values = {"run": self.run, "profiles": {name: asdict(profile) for name, profile in self.profiles.items()}}
        write_atomically(output / SITES, exact_json(values, indent=2).encode() + b"\n")


def check_same_sites(output: Path, known: Mapping[str, SiteProfile], client_ids: Mapping[str, int]) -> None:
    """Refuse to continue a run over other sites than those it began with, before any of them is asked.

    A site is known by its name. What it keeps, and what the server knows about it, belongs to its client id, so a name
    with another id is another client.

    Args:
        known: the sites of the run. client_ids: of the sites of the deployment, in their order.

    Raises:
        InputError: a site has joined, is missing or has another client id.
    """
    began = Bindings.read(output)
    names = (began.values if began else {}).get("population", {}).get("names")
    # A run of an older version has only the sites that take part, which are not those that it goes on without.
    names = names or sorted(known, key=lambda site: known[site].client_id)
    then = {"names": names, "clients": len(names)}
    now = {"names": sorted(client_ids, key=lambda site: client_ids[site]), "clients": len(client_ids)}
    found = differences({"population": then}, {"population": now})
    require_same(
        f"the run in {output} cannot continue", found, None, "start the deployment it began with, or start a new run"
    )
