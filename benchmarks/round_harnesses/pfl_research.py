"""The rounds in pfl-research's simulation: its PyTorch model, its simulated backend and federated averaging."""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend  # pyright: ignore[reportMissingImports]
from pfl.algorithm.base import NNAlgorithmParams  # pyright: ignore[reportMissingImports]
from pfl.algorithm.federated_averaging import FederatedAveraging  # pyright: ignore[reportMissingImports]
from pfl.callback.base import TrainingProcessCallback  # pyright: ignore[reportMissingImports]
from pfl.data.federated_dataset import FederatedDataset  # pyright: ignore[reportMissingImports]
from pfl.data.pytorch import PyTorchTensorDataset  # pyright: ignore[reportMissingImports]
from pfl.hyperparam.base import NNTrainHyperParams  # pyright: ignore[reportMissingImports]
from pfl.metrics import Metrics, Weighted  # pyright: ignore[reportMissingImports]
from pfl.model.pytorch import PyTorchModel  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from .task import Task, now, report


class Fit(nn.Module):
    """The task's model as pfl wants it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self.loss = task.model, task.loss

    def metrics(self, **batch: Tensor) -> dict[str, Any]:
        """Asked for before and after training in the first round, which is not timed."""
        with torch.no_grad():
            return {"loss": Weighted.from_unweighted(float(self.loss(**batch)))}


class Clock(TrainingProcessCallback):
    """Notes when each round ended."""

    def __init__(self) -> None:
        self.times = [now()]

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
        """Does not stop the training."""
        self.times.append(now())
        return False, Metrics()


def main(folder: str, final: str) -> None:
    torch.set_num_threads(1)
    task = Task(Path(folder))
    if len(set(task.weights)) > 1:
        raise ValueError(f"clients of {task.weights} examples: users weigh the same here")
    # A user for each client and round, in order: pfl draws users at random, and here they bring the given batches.
    users = itertools.product(range(1, task.rounds + 1), range(task.num_clients))
    data = FederatedDataset(lambda user: PyTorchTensorDataset(task.batch(*user)), lambda: next(users))
    parameters = list(task.parameters.values())
    model = PyTorchModel(
        Fit(task),
        local_optimizer_create=lambda _, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True),
        central_optimizer=torch.optim.SGD(parameters, lr=1.0),
    )
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,
            train_cohort_size=task.num_clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_batch_size=None, local_num_epochs=1, local_learning_rate=task.learning_rate),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    report(clock.times, task.parameters, Path(final))


if __name__ == "__main__":
    main(*sys.argv[1:])
