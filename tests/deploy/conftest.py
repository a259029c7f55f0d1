"""A deployment that tests read, copies of its folders that they may spoil, and a running link to Flower."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments import ADDRESS, SITES
from fftmoe.deploy.folder import create_deployment

if TYPE_CHECKING:
    from flower_link import Authority, Link

Rows = list[dict[str, Any]]
TRIES = 20  # of each attack that needs no network


@pytest.fixture(scope="session")
def attacks() -> Iterator[Rows]:
    """What was measured of attacks, a row each; written in the end to the file that FFTMOE_ATTACKS names."""
    rows: Rows = []
    yield rows
    if path := os.environ.get("FFTMOE_ATTACKS"):
        Path(path).write_text(json.dumps({"tries": TRIES, "attacks": rows}, indent=1) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that no test changes."""
    folder = tmp_path_factory.mktemp("made") / "clinic study"
    old = os.umask(0o022)
    try:
        create_deployment(folder, ADDRESS, SITES, days=365)
    finally:
        os.umask(old)
    return folder


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Path:
    """A copy of the server's folder."""
    return Path(shutil.copytree(made / "server", tmp_path / "server"))


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder of client 1."""
    return Path(shutil.copytree(made / "sites" / "hospital-a", tmp_path / "site"))


@pytest.fixture
def folders(server: Path, site: Path) -> dict[str, Path]:
    return {"server": server, "site": site}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    from flower_link import new_authority

    return new_authority(tmp_path_factory.mktemp("papers") / "ours")


@pytest.fixture(scope="module")
def link(authority: "Authority", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Link"]:
    """A SuperLink with two nodes, which the tests of a file share."""
    from flower_link import open_link

    with open_link(authority, tmp_path_factory.mktemp("federation")) as opened:
        yield opened
