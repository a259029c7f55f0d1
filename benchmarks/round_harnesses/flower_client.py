"""Flower's client for the fit; Ray's workers import it, and each of them keeps one resident model."""

import os
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # pyright: ignore[reportMissingImports]
from flwr.clientapp import ClientApp  # pyright: ignore[reportMissingImports]

from .task import Task

FOLDER = "ROUND_TASK"

app = ClientApp()


@cache
def resident() -> Task:
    """This worker's model, made when its first client comes."""
    torch.set_num_threads(1)
    return Task(Path(os.environ[FOLDER]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """One step on the client's batch of this round."""
    task = resident()
    client = int(context.node_config["partition-id"])
    task.load(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = task.optimizer()
    loss = task.loss(**task.batch(int(str(message.content.config_records["config"]["server-round"])), client))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    arrays = ArrayRecord({name: parameter.detach() for name, parameter in task.parameters.items()})
    metrics = MetricRecord({"loss": float(loss.detach()), "num-examples": task.weights[client]})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
