"""Flower's simulation on this machine, or on a Ray cluster, as an engine.

Flower's loop runs in a thread beside ours and lends us its grid until the engine is closed.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, Queue
from typing import Any

from fftmoe.engines.base import Fault, Group, Reply
from fftmoe.errors import RunError

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Before Ray is imported: it would otherwise warn of its own future default at every start.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fftmoe.engines.flower import FlowerEngine, ask
from fftmoe.engines.flower_messages import Job

START_SECONDS = 300.0
MOST_NODES = 1000  # virtual ones; any of them can serve any client, and Flower looks at each ten times a second


class FlowerSimulation:
    """An engine whose clients run in Ray's processes.

    Args:
        num_clients: of the population.
        workers: processes on this machine; a Ray cluster (`address`) has its own.
        address: of a running Ray cluster; None starts Ray here.
    """

    def __init__(
        self,
        client_app: ClientApp,
        job: Job,
        num_clients: int,
        workers: int,
        deadline_seconds: float,
        address: str | None = None,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._grids: Queue[Grid | BaseException] = Queue()
        self._done = threading.Event()
        num_nodes = min(num_clients, MOST_NODES)
        # "local" also where a cluster that has ended left its address behind, which Ray would otherwise try.
        ray: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": workers}
        config: dict[str, Any] = {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
        self._thread = threading.Thread(target=self._simulate, args=(client_app, num_nodes, config), daemon=True)
        self._thread.start()
        grid = self._grid()
        found = sorted(grid.get_node_ids())
        # Ray's processes start with the first messages they get; the first round's deadline must not pay for that.
        for node, answer in ask(grid, found[:workers], job, START_SECONDS).items():
            if isinstance(answer, str):
                self.close()
                raise RunError(f"a worker of Flower's simulation (node {node}) could not start: {answer}")
        nodes = {client_id: found[client_id % len(found)] for client_id in range(num_clients)}
        self._engine = FlowerEngine(grid, nodes, job, deadline_seconds)

    @property
    def reliable(self) -> bool:
        """As in a real deployment, a client that fails is the round's to bear."""
        return False

    def absent(self) -> frozenset[int]:
        """See `Engine`."""
        return self._engine.absent()

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        return self._engine.run_clients(groups, enough)

    def close(self) -> None:
        """End the simulation and Ray's processes."""
        self._done.set()
        self._thread.join()

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return self._engine.peak_rss_mib()

    def _grid(self) -> Grid:
        """Flower's, once it has nodes."""
        try:
            grid = self._grids.get(timeout=START_SECONDS)
        except Empty:
            raise RunError(f"Flower's simulation did not start within {START_SECONDS:g} s") from None
        if isinstance(grid, BaseException):
            raise RunError(f"Flower's simulation could not start: {grid}") from grid
        return grid

    def _simulate(self, client_app: ClientApp, num_nodes: int, config: Mapping[str, Any]) -> None:
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            _wait_for_nodes(grid, num_nodes, self._done)
            self._grids.put(grid)
            self._done.wait()

        try:
            run_simulation(server_app, client_app, num_nodes, backend_config=dict(config))
        except BaseException as error:
            self._grids.put(error)
            self._done.set()


def _wait_for_nodes(grid: Grid, num_nodes: int, done: threading.Event) -> None:
    while len(list(grid.get_node_ids())) < num_nodes and not done.wait(0.05):
        pass
