"""The server's step from an aggregated delta, with its state kept per expert (docs/math.md, Server optimisers).

A row (an expert, or a whole shared tensor) that nobody trained keeps its weights and its moments bit for bit.

The head is averaged plainly whatever the optimiser: clients train it at a bold rate of its own, and under label skew
its changes swing from round to round, which a momentum makes larger (docs/LOG.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import Tensors, names

KINDS = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class ServerOptimizer:
    """`theta <- theta + learning_rate * step`; the delta plays the part of the negative gradient.

    `sgd`: step = delta. `momentum`: v <- beta1 v + delta, step = v. `adam`: Adam with bias correction by the
    number of rounds in which that very row was trained (Reddi et al., arXiv 2003.00295, "FedAdam").
    """

    kind: str = "sgd"
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown server_optimizer {self.kind!r}{did_you_mean(self.kind, KINDS)}")

    def apply(self, tensors: Tensors, deltas: Tensors, trained: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """One step on every tensor that has a delta; returns new tensors (float32) and a new optimiser state."""
        new_tensors, new_state = dict(tensors), dict(state)
        for name in sorted(deltas):
            old = tensors[name]
            if names.is_head(name):
                new_tensors[name] = (old.double() + deltas[name]).to(old.dtype)
                continue
            rows = trained[name].view(-1, *[1] * (old.dim() - 1))
            step, moments = self._step(name, deltas[name], trained[name], rows, state)
            moved = (old.double() + self.learning_rate * step).to(old.dtype)
            new_tensors[name] = torch.where(rows, moved, old)
            new_state |= moments
        return new_tensors, new_state

    def _step(self, name: str, delta: Tensor, trained: Tensor, rows: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        if self.kind == "sgd":
            return delta, {}
        zeros = torch.zeros_like(delta)
        m_old = state.get(names.moment(name, "m"), zeros)
        if self.kind == "momentum":
            m = torch.where(rows, self.beta1 * m_old + delta, m_old)
            return m, {names.moment(name, "m"): m}
        v_old = state.get(names.moment(name, "v"), zeros)
        steps = state.get(names.moment(name, "t"), torch.zeros(trained.shape, dtype=torch.float64)) + trained
        m = torch.where(rows, self.beta1 * m_old + (1 - self.beta1) * delta, m_old)
        v = torch.where(rows, self.beta2 * v_old + (1 - self.beta2) * delta**2, v_old)
        t = steps.clamp(min=1).view(rows.shape)
        step = (m / (1 - self.beta1**t)) / ((v / (1 - self.beta2**t)).sqrt() + self.epsilon)
        return step, {names.moment(name, "m"): m, names.moment(name, "v"): v, names.moment(name, "t"): steps}
