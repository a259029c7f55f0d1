"""The fit that all harnesses do, read from a folder that `prepare` wrote: a model, each client's batches, a loss.

The model is ours in all of them: a frozen random BERT with the sparse mixture-of-experts adapter and a trained head.
Every client holds the whole pool of experts, so that what is averaged is what any framework would average.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, head_parameters, load_backbone

INITIAL = "initial/"


def rows_name(round: int, client: int) -> str:
    """Where the rows of this client's batch are kept; rounds count from 1."""
    return f"rows/{round}/{client}"


class Task:
    """One resident model, with the batches of every client in every round.

    Attributes:
        parameters: what is trained, under the names of `fftmoe.records`. `initial`: their values before round 1.
        weights: examples of each client, by which its changes are averaged.
    """

    def __init__(self, folder: Path) -> None:
        self.values: dict[str, Any] = json.loads((folder / "task.json").read_text())
        stored = safetensors.torch.load_file(folder / "task.safetensors")
        self.initial = {name.removeprefix(INITIAL): t for name, t in stored.items() if name.startswith(INITIAL)}
        self._stored = stored
        self.weights: list[int] = self.values["weights"]
        self.rounds: int = self.values["rounds"]
        self.learning_rate: float = self.values["learning_rate"]
        backbone = load_backbone(str(folder / "backbone"), num_labels=self.values["labels"])
        self.model = attach_adapter(backbone, MoeAdapterConfig(**self.values["adapter"]))
        self.parameters = _parameters(self.model)
        self.load(self.initial)
        # Hooks that stay as long as this does, where entering and leaving them for each client would cost time.
        self._hooks = ExitStack()
        self._read_routing = self._hooks.enter_context(adapter.record_routing(self.model))

    @property
    def num_clients(self) -> int:
        """All of them take part in every round."""
        return len(self.weights)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the global model into the resident one."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def batch(self, round: int, client: int) -> dict[str, Tensor]:
        """The client's only batch in this round, which counts from 1."""
        rows = self._stored[rows_name(round, client)]
        return {name: self._stored[name][rows] for name in ("input_ids", "attention_mask", "labels")}

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, and per block the Switch balance loss and the router z-loss, as recipes weigh them."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        mask, penalty = attention_mask.flatten().bool(), torch.zeros(())
        routings = self._read_routing()
        for routing in routings.values():
            load, probs = adapter.expert_load(routing, mask), adapter.mean_probs(routing, mask)
            uniform = torch.full_like(probs, 1 / probs.numel())
            penalty = penalty + self.values["balance_strength"] * adapter.balance_loss(load, probs, uniform)
            penalty = penalty + self.values["z_strength"] * adapter.router_z_loss(routing, mask)
        return nn.functional.cross_entropy(logits, labels) + penalty / len(routings)

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one, as each client begins with."""
        return torch.optim.AdamW(self.parameters.values(), lr=self.learning_rate, weight_decay=0.0, fused=True)


def _parameters(model: Any) -> dict[str, nn.Parameter]:
    found = {f"head.{name}": parameter for name, parameter in head_parameters(model).items()}
    for block, moe in adapter.blocks(model).items():
        found |= {
            f"blocks.{block}.router": moe.router.weight,
            f"blocks.{block}.up": moe.up,
            f"blocks.{block}.down": moe.down,
        }
    return found


def now() -> float:
    """Seconds of a clock that only goes forward."""
    return time.perf_counter()


def steady(times: Sequence[float]) -> list[float]:
    """Seconds of each round but the first, which warms up, and the last, after which ours measures the model.

    Args:
        times: when round 1 began, and when each round ended.
    """
    return [end - start for start, end in pairwise(times[1:-1])]


def report(times: Sequence[float], tensors: Mapping[str, Tensor], final: Path, **facts: object) -> None:
    """What every harness ends with: its final model in a file, its seconds as the last line on the terminal."""
    safetensors.torch.save_file({name: t.detach().contiguous() for name, t in tensors.items()}, final)
    print(json.dumps({"seconds": steady(times), **facts}), flush=True)
