"""Runs Flower's simulation as an engine, on this machine or on a Ray cluster.

Flower's loop runs in a second thread, and the engine uses its grid until it is closed.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, Queue
from typing import Any

from fftmoe.engines.base import Fault, Group, Quota, Reply
from fftmoe.errors import RunError

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Set before Ray is imported, which otherwise warns about a future default at every start.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fftmoe.engines.flower import FlowerEngine, ask
from fftmoe.engines.flower_messages import JobValues

SIMULATION_START_SECONDS = 300.0
MOST_NODES = 1000  # virtual nodes; each can serve any client, and Flower polls each of them ten times a second


class FlowerSimulation:
    """Runs clients in Ray's processes.

    Args:
        num_clients: size of the population.
        workers: number of processes on this machine; not used with a Ray cluster, which has its own.
        address: address of a running Ray cluster; None starts Ray on this machine.
    """

    def __init__(
        self,
        client_app: ClientApp,
        job: JobValues,
        num_clients: int,
        workers: int,
        deadline_seconds: float,
        address: str | None = None,
    ) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._grids: Queue[Grid | BaseException] = Queue()
        self._done = threading.Event()
        arguments = (client_app, min(num_clients, MOST_NODES), _backend_config(address, workers))
        self._thread = threading.Thread(target=self._simulate, args=arguments, daemon=True)
        self._thread.start()
        grid = self._grid()
        found = sorted(grid.get_node_ids())
        self._start_workers(grid, found[:workers], job)
        nodes = {client_id: found[client_id % len(found)] for client_id in range(num_clients)}
        self._engine = FlowerEngine(grid, nodes, job, deadline_seconds, own=True)

    @property
    def reliable(self) -> bool:
        """Return False: as in a real deployment, a round continues without a client that fails."""
        return False

    def absent(self) -> frozenset[int]:
        """See `Engine`."""
        return self._engine.absent()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        return self._engine.run_clients(groups, quota)

    def close(self) -> None:
        """End the simulation and Ray's processes."""
        self._done.set()
        self._thread.join()

    def peak_rss_mib(self) -> float:
        """See `Engine`."""
        return self._engine.peak_rss_mib()

    def _start_workers(self, grid: Grid, nodes: Sequence[int], job: JobValues) -> None:
        """Start Ray's processes with a first query, so that the start does not count toward a round's deadline."""
        for node, answer in ask(grid, nodes, job, SIMULATION_START_SECONDS, own=True).items():
            if isinstance(answer, str):
                self.close()
                raise RunError(f"a worker of Flower's simulation (node {node}) could not start: {answer}")

    def _grid(self) -> Grid:
        """Return Flower's grid, once it has nodes."""
        try:
            grid = self._grids.get(timeout=SIMULATION_START_SECONDS)
        except Empty:
            raise RunError(
                f"Flower's simulation did not start within {SIMULATION_START_SECONDS:g} s; start the run again, or set "
                "engine.kind=local"
            ) from None
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


def _backend_config(address: str | None, workers: int) -> dict[str, Any]:
    # "local" also ignores the address that a cluster left behind when it ended, which Ray would otherwise try.
    ray: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": workers}
    return {"init_args": ray, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}


def _wait_for_nodes(grid: Grid, num_nodes: int, done: threading.Event) -> None:
    while len(list(grid.get_node_ids())) < num_nodes and not done.wait(0.05):
        pass
