"""The rounds in Flower's simulation: FedAvg, evaluation off.

One core a client makes a Ray worker for each of two cores, where Flower's default makes one in all. A round takes a
multiple of 0.1 s, or nearly: so often does Flower look for replies.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord  # pyright: ignore[reportMissingImports]
from flwr.serverapp import ServerApp  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import FedAvg  # pyright: ignore[reportMissingImports]
from flwr.simulation import run_simulation  # pyright: ignore[reportMissingImports]

from .flower_client import FOLDER, app
from .task import Task, now, report

# Ray stays on this machine, and takes less memory than the share of all that it would.
RAY = {"_node_ip_address": "127.0.0.1", "num_cpus": 2, "object_store_memory": 256 * 2**20}


class TimedFedAvg(FedAvg):
    """Notes when each round begins, and how many clients failed: a run in which all of them do ends well."""

    def __init__(self, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.clients = clients
        self.times: list[float] = []

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        """The beginning of a round."""
        self.times.append(now())
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """The mean of the replies."""
        replies = list(replies)
        done = sum(not reply.has_error() for reply in replies)
        if done != self.clients:
            raise RuntimeError(f"{done} of {self.clients} clients replied in round {server_round}")
        return super().aggregate_train(server_round, replies)


def main(folder: str, final: str) -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)
    os.environ[FOLDER] = str(Path(folder).absolute())
    task = Task(Path(folder))
    strategy, server = TimedFedAvg(task.num_clients), ServerApp()
    results: list[Any] = []

    @server.main()
    def rounds(grid: Any, context: Any) -> None:
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord(task.initial), num_rounds=task.rounds))
        strategy.times.append(now())

    run_simulation(
        server,
        app,
        num_supernodes=task.num_clients,
        backend_config={"init_args": RAY, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    report(strategy.times, results[0].arrays.to_torch_state_dict(), Path(final))


if __name__ == "__main__":
    main(*sys.argv[1:])
