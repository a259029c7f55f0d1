"""Applies an aggregated delta to the global model, with moments per expert (docs/math.md, Server optimisers).

    theta <- theta + eta * step

The delta takes the role of the negative gradient (Reddi et al., arXiv 2003.00295). A row is one expert, or a whole
tensor without experts. A row that no client trained keeps the bits of its weights and of its moments.

The head is always averaged without an optimiser. Clients train it with a large learning rate, and under label skew its
changes vary in direction from round to round, which momentum amplifies (docs/LOG.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import Tensors, names

OPTIMIZERS = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class ServerOptimizer:
    """`ServerOptimizer` computes theta <- theta + learning_rate * step from the mean delta.

    Attributes:
        kind: `sgd`: step = delta. `momentum`: v <- beta1 v + delta, step = v. `adam`: FedAdam with bias correction by
            the number of rounds in which the row was trained.
        learning_rate: eta.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: the constant in the denominator of `adam`.
    """

    kind: str = "sgd"
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise InputError(f"unknown server_optimizer {self.kind!r}{did_you_mean(self.kind, OPTIMIZERS)}")

    def apply(self, tensors: Tensors, deltas: Tensors, trained: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        """Apply one step to every tensor that has a delta.

        Args:
            tensors: the global model, float32.
            deltas: the mean deltas, float64.
            trained: name -> bool [M] ([1] for a tensor without experts), the rows that change.
            state: the moments, under the names `names.moment(name, kind)`.

        Returns:
            The new tensors, float32, and the new moments.
        """
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
        """Return the step of one tensor and its new moments; `rows` is `trained` in a shape that broadcasts."""
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
