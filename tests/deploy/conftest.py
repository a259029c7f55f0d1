"""A deployment that tests read, and copies of its folders that they may spoil."""

import os
import shutil
from pathlib import Path

import pytest

from deployments import ADDRESS, SITES
from fftmoe.deploy.folder import create_deployment


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
