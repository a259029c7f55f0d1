"""Malicious clients: engines that change what some clients of a federation send, or the data they train on.

The malicious clients collude, know what all honest clients of the round send, and send updates of the right form. The
honest clients, the server and the messages are the real ones.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from fftmoe.data import Examples
from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.head import HeadSums
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, pack_update, unpack_plan, unpack_update
from fftmoe.records.codec import decode, encode
from fftmoe.records.names import block_of
from fftmoe.rng import generator, numpy_generator

Craft = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""What a client sends of a tensor of one expert, from its own honest change and those of the N honest clients that
trained it, [N, …] (its own where there are none)."""


def _alie(own: Tensor, honest: Tensor, source: torch.Generator) -> Tensor:
    """Hide among honest updates: the mean minus 1.5 standard deviations (arXiv 1902.06156; 1.5 as in ByzFL)."""
    return honest.mean(0) - 1.5 * honest.std(0, correction=0)


def _ipm(own: Tensor, honest: Tensor, source: torch.Generator) -> Tensor:
    """Step a little against the mean, which selection rules accept (inner-product manipulation, arXiv 1903.03936)."""
    return -0.5 * honest.mean(0)


def _gaussian(own: Tensor, honest: Tensor, source: torch.Generator) -> Tensor:
    """Return a random direction, ten times as long as an honest change."""
    noise = torch.randn(own.shape, generator=source, dtype=own.dtype)
    return noise * (10 * own.norm() / noise.norm())


CRAFTS: dict[str, Craft] = {
    "sign flip": lambda own, honest, source: -own,
    "scaled": lambda own, honest, source: -10 * own,
    "Gaussian": _gaussian,
    "ALIE": _alie,
    "IPM": _ipm,
    "mimic": lambda own, honest, source: honest[0],  # the same honest client each time (arXiv 2006.09365)
    "NaN": lambda own, honest, source: torch.full_like(own, torch.nan),
}


def malicious_clients(num_clients: int, fraction: float, seed: int) -> frozenset[int]:
    """Return the malicious clients of the population, chosen by the seed."""
    chosen = numpy_generator(seed, "malicious").choice(num_clients, round(fraction * num_clients), replace=False)
    return frozenset(int(client) for client in chosen)


class Wrapped:
    """An engine that takes its properties from another engine."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    @property
    def reliable(self) -> bool:
        """Same as the wrapped engine."""
        return self._inner.reliable

    def absent(self) -> Collection[int]:
        """Same as the wrapped engine."""
        return self._inner.absent()

    def close(self) -> None:
        """Close the wrapped engine."""
        self._inner.close()

    def peak_rss_mib(self) -> float:
        """Same as the wrapped engine."""
        return self._inner.peak_rss_mib()


class Colluding(Wrapped):
    """Real clients, of whom the malicious ones send what an attack makes of the round's honest updates.

    Args:
        last: the last round in which they do so; None: always.
    """

    def __init__(
        self, inner: Engine, craft: Craft, malicious: Collection[int], seed: int, last: int | None = None
    ) -> None:
        super().__init__(inner)
        self._craft, self._malicious, self._seed, self._last = craft, malicious, seed, last

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`; the malicious clients wait for all others."""
        plans = {client_id: unpack_plan(message)[0] for group in groups for client_id, message in group}
        replies = [cast(Reply, answer) for answer in self._inner.run_clients(groups, quota)]
        updates = {reply.client_id: _decoded(unpack_update(reply.message)) for reply in replies}
        honest = [updates[client] for client in sorted(updates) if client not in self._malicious]
        for reply in replies:
            plan = plans[reply.client_id]
            attacks = plan.task == "train" and not _over(plan, self._last)
            if attacks and reply.client_id in self._malicious:
                sent = self._crafted(updates[reply.client_id], honest, plan)
                reply = reply._replace(message=pack_update(sent))
            yield reply

    def _crafted(self, own: ClientUpdate, honest: Sequence[ClientUpdate], plan: ClientPlan) -> ClientUpdate:
        source = generator(self._seed, "attack", own.client_id, own.round)
        tensors: Tensors = {}
        for name, delta in own.tensors.items():
            block = block_of(name)
            ids = (None,) if block is None else own.experts[block]
            rows = [delta] if block is None else list(delta)
            made = [
                self._craft(row.double(), _honest_rows(name, expert, row, honest), source)
                for expert, row in zip(ids, rows, strict=True)
            ]
            tensors[name] = torch.stack(made).view(delta.shape).float() if made else delta
        return replace(own, tensors=encode(tensors, plan.training.upload))


def _over(plan: ClientPlan, last: int | None) -> bool:
    return last is not None and plan.round > last


def _decoded(update: ClientUpdate) -> ClientUpdate:
    return replace(update, tensors=decode(update.tensors))


def _honest_rows(name: str, expert: int | None, own: Tensor, honest: Sequence[ClientUpdate]) -> Tensor:
    """What the honest clients that trained this expert (None: this tensor) send of it, float64 [N, …]."""
    rows = []
    for update in honest:
        if name not in update.tensors:
            continue
        if expert is None:
            rows.append(update.tensors[name])
        elif expert in (ids := update.experts[cast(int, block_of(name))]):
            rows.append(update.tensors[name][ids.index(expert)])
    return torch.stack(rows or [own]).double()


class Poisoned(Wrapped):
    """Real clients, of whom the malicious ones train on other examples, and send what comes of it.

    Args:
        poisoned: an engine of the same clients over those examples.
        last: the last round in which they do so; None: always.
    """

    def __init__(self, inner: Engine, poisoned: Engine, malicious: Collection[int], last: int | None = None) -> None:
        super().__init__(inner)
        self._poisoned, self._malicious, self._last = poisoned, malicious, last

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        for group in groups:
            bad = [(client, message) for client, message in group if self._attacks(client, message)]
            good = [member for member in group if member not in bad]
            yield from self._inner.run_clients([good] if good else [])
            yield from self._poisoned.run_clients([bad] if bad else [])

    def _attacks(self, client_id: int, message: bytes) -> bool:
        return client_id in self._malicious and not _over(unpack_plan(message)[0], self._last)


class LyingSums(Wrapped):
    """Malicious clients send statistics of features ten times as long, with the labels shifted by one."""

    def __init__(self, inner: Engine, malicious: Collection[int]) -> None:
        super().__init__(inner)
        self._malicious = malicious

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        plans = {client_id: unpack_plan(message)[0] for group in groups for client_id, message in group}
        for answer in self._inner.run_clients(groups, quota):
            reply = cast(Reply, answer)
            if reply.client_id in self._malicious and plans[reply.client_id].task == "sums":
                update = unpack_update(reply.message)
                sums = _lying(update.tensors)
                reply = reply._replace(message=pack_update(replace(update, tensors=sums)))
            yield reply


def _lying(sums: Tensors) -> Tensors:
    moment = sums["sums.moment"]
    longer = torch.full((len(moment),), 10.0, dtype=torch.float64)
    longer[-1] = 1  # the bias: what counts the examples is checked
    false = longer[:, None] * moment.double().roll(1, 1)
    if "sums.factor" in sums:
        return {**sums, "sums.factor": (sums["sums.factor"].double() * longer).float(), "sums.moment": false.float()}
    gram = HeadSums.from_tensors(sums).gram
    return {**sums, **HeadSums(longer[:, None] * gram * longer, false).to_tensors()}


def with_labels(examples: Examples, labels: Tensor) -> Examples:
    """Return the same inputs with other labels, int64 [N]; cached states are kept."""
    inner = cast(Any, examples)
    if hasattr(inner, "examples"):
        return replace(inner, examples=replace(inner.examples, labels=labels))
    return replace(inner, labels=labels)
