"""A run on one machine opens no port: neither this process nor its workers listen for connections."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fftmoe.config import parse_recipe
from fftmoe.report.progress import Progress
from fftmoe.setup.run import run

LISTENS = "0A"  # as the kernel writes it
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables of sockets")


def listening() -> list[str]:
    """The listening TCP and UDP sockets of this process and of its descendants, by local address."""
    own = {inode for process in family(os.getpid()) for inode in sockets(process)}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in own and (fields[3] == LISTENS or table.startswith("udp")):
                found.append(f"{table} {fields[1]}")
    return found


def family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            yield from family(int(child))


def sockets(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]


class Looking(Progress):
    """Looks for sockets whenever a client is done, while the workers run."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.found: list[str] = []
        self.processes: set[int] = set()

    def client_done(self, client_id: int) -> None:
        self.found += listening()
        self.processes |= set(family(os.getpid()))

    def round_done(self, row: Mapping[str, Any]) -> None:
        self.found += listening()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_here_opens_no_port(recipe_values: dict[str, Any], tmp_path: Path, workers: int):
    recipe = parse_recipe({**recipe_values, "engine": {"workers": workers}}, "here")
    progress, before = Looking(), listening()
    run(recipe, tmp_path / "run", progress)
    assert len(progress.processes) >= (1 if workers == 1 else 3)
    assert sorted(set(progress.found) - set(before)) == []


def test_a_port_would_be_seen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"{server.getsockname()[1]:04X}"
        assert any(address.endswith(port) for address in listening())
