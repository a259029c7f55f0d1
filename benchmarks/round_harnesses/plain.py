"""The plain loop: what a good engineer would write for this fit alone. Nothing is serialised, nothing is saved.

One resident model and one optimizer serve all clients; batches lie ready in memory.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .task import Task, now, report


def rounds(task: Task, ended: Callable[[], None]) -> dict[str, Tensor]:
    """All rounds of federated averaging; the final global model. `ended` is called after each."""
    tensors, total = dict(task.initial), sum(task.weights)
    optimizer = task.optimizer()
    for t in range(1, task.rounds + 1):
        sums = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        losses = []
        for client, weight in enumerate(task.weights):
            task.load(tensors)
            optimizer.state.clear()
            loss = task.loss(**task.batch(t, client))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            for name, parameter in task.parameters.items():
                sums[name].add_(parameter.detach() - tensors[name], alpha=weight / total)
        tensors = {name: tensor + sums[name] for name, tensor in tensors.items()}
        ended()
    return tensors


def main(folder: str, final: str) -> None:
    torch.set_num_threads(1)
    task = Task(Path(folder))
    times = [now()]
    tensors = rounds(task, lambda: times.append(now()))
    report(times, tensors, Path(final))


if __name__ == "__main__":
    main(*sys.argv[1:])
