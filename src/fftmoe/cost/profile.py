"""What this machine can do in a round: steps timed at a few budgets, a line through them, and the largest that fits.

A client's round of s steps with k of E experts in B blocks is predicted as

    t = per_round + s * (per_step + B * (per_block + E * per_expert + k * per_top_k))

with no coefficient below zero, by least squares on relative errors: five timed points, five numbers, no curvature.
`per_step` holds the head, the optimizer and the frozen blocks above the adapter; `per_block` what a backward pass
through one more block costs, so that fewer blocks are quicker.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fftmoe.config import Recipe
from fftmoe.cost.memory import available_mib, total_mib
from fftmoe.cost.timing import TimedClient
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import InputError
from fftmoe.methods.budget import BYTES, MIB, TRAINING_COPIES, ExpertShape
from fftmoe.records import Budget
from fftmoe.records.codec import bytes_per_number
from fftmoe.setup.compose import Experiment, compose

REPEATS = 3
MEGABIT = 1e6 / 8  # bytes


@dataclass(frozen=True)
class Point:
    """A budget as it was timed: the median of `REPEATS` after one that warmed up, and (largest - smallest) / median."""

    budget: Budget
    steps: int
    seconds: float
    spread: float


@dataclass(frozen=True)
class Speed:
    """The coefficients of the line, in seconds."""

    per_round: float
    per_step: float
    per_block: float
    per_expert: float
    per_top_k: float

    @classmethod
    def fitted(cls, points: Sequence[Point]) -> "Speed":
        """The least squares of relative errors; a coefficient that would be negative is zero, and the others refit."""
        rows = np.array([_terms(point.budget, point.steps) for point in points]) / [[p.seconds] for p in points]
        kept = list(range(rows.shape[1]))
        while True:
            found = np.linalg.lstsq(rows[:, kept], np.ones(len(rows)), rcond=None)[0]
            if not (found < 0).any():
                break
            del kept[int(found.argmin())]
        coefficients = np.zeros(rows.shape[1])
        coefficients[kept] = found
        return cls(*map(float, coefficients))

    def seconds(self, budget: Budget, steps: float) -> float:
        """Of a client's round, without the network."""
        own = (self.per_round, self.per_step, self.per_block, self.per_expert, self.per_top_k)
        return sum(a * b for a, b in zip(own, _terms(budget, steps), strict=True))


def _terms(budget: Budget, steps: float) -> tuple[float, ...]:
    in_blocks = steps * len(budget.blocks)
    return 1.0, steps, in_blocks, in_blocks * budget.experts, in_blocks * budget.top_k


@dataclass(frozen=True)
class Limits:
    """What a round may take on this machine; `uplink_mbit` is None where the upload is not to be counted."""

    deadline_seconds: float
    memory_mib: float
    uplink_mbit: float | None = None


@dataclass(frozen=True)
class Fit:
    """A budget with what a round with it is predicted to take, network included, and the process at its largest."""

    budget: Budget
    seconds: float
    memory_mib: float


@dataclass(frozen=True)
class Profile:
    """What was measured of this machine, and the largest budget that fits it.

    Attributes:
        points: as timed. steps: of an average client in a round.
        total_mib, available_mib: memory, control groups respected. process_mib: this process after the largest point.
        chosen: the largest that fits. bound: what the next larger would break, in words.
        tiers: what the recipe's own tiers are predicted to take here.
    """

    points: tuple[Point, ...]
    speed: Speed
    steps: float
    total_mib: float
    available_mib: float
    process_mib: float
    limits: Limits
    chosen: Fit
    bound: str
    tiers: tuple[Fit, ...]


def profile(
    recipe: Recipe,
    deadline_seconds: float | None = None,
    memory_mib: float | None = None,
    uplink_mbit: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Time this machine on the recipe's own backbone and data, and choose a budget for it.

    Args:
        deadline_seconds: of a round; `federation.deadline_seconds` when None.
        memory_mib: for the whole process; what is available now when None.
        uplink_mbit: megabits a second; None: uploads take no time.
        say: told what is timed, line by line.

    Raises:
        InputError: nothing fits; or as `compose`.
    """
    available = available_mib()
    limits = Limits(deadline_seconds or recipe.federation.deadline_seconds, memory_mib or available, uplink_mbit)
    experiment = compose(recipe)
    state = experiment.method.init(experiment.model)
    client = TimedClient(experiment, state)
    points = tuple(_timed(client, experiment, say))
    process, steps = peak_rss_mib(), client.steps()
    head = sum(t.numel() for name, t in state.tensors.items() if name.startswith("head."))
    model = Model(Speed.fitted(points), steps, experiment, limits, process, head, max(points, key=_size).budget)
    chosen, bound = largest(candidates(experiment), model.fit, limits)
    tiers = tuple(model.fit(tier) for tier in experiment.tiers)
    return Profile(points, model.speed, steps, total_mib(), available, process, limits, chosen, bound, tiers)


def _timed(client: TimedClient, experiment: Experiment, say: Callable[[str], None]) -> list[Point]:
    """Points that tell the coefficients apart: fewer blocks, fewer experts, a smaller top_k, twice the steps."""
    blocks, pool = experiment.largest.blocks, experiment.recipe.adapter.num_experts
    few = min(tier.experts for tier in experiment.tiers)
    many = max(tier.top_k for tier in experiment.tiers)
    steps = client.sample_steps()
    everything = Budget("everything", many, pool, blocks)
    settings = [
        (everything, steps),
        (everything, 2 * steps),
        (replace(everything, top_k=1), steps),
        (replace(everything, top_k=1, experts=few), steps),
        (replace(everything, top_k=1, experts=few, blocks=blocks[-1:]), steps),
    ]
    points = []
    for budget, count in dict.fromkeys(settings):
        point = _repeated(budget, count, [client.seconds(budget, count) for _ in range(REPEATS + 1)][1:])
        say(
            f"timed {_named(budget)}, {count} steps: {point.seconds:.3f} s, median of {REPEATS}, "
            f"spread {point.spread:.0%}"
        )
        points.append(point)
    return points


def _repeated(budget: Budget, steps: int, seconds: Sequence[float]) -> Point:
    median = statistics.median(seconds)
    return Point(budget, steps, median, (max(seconds) - min(seconds)) / median)


def _size(point: Point) -> tuple[int, int, int]:
    return order(point.budget)


@dataclass(frozen=True)
class Model:
    """Predicts what a budget takes on this machine.

    Attributes:
        process_mib: the process at its largest, when `measured` was the largest budget it trained.
        head: parameters of the head.
    """

    speed: Speed
    steps: float
    experiment: Experiment
    limits: Limits
    process_mib: float
    head: int
    measured: Budget

    def fit(self, budget: Budget) -> Fit:
        """The prediction of one budget."""
        seconds = self.speed.seconds(budget, self.steps) + self._upload_seconds(budget)
        copies = BYTES * TRAINING_COPIES / MIB
        spared = _parameters(self.measured, self.experiment.shape) - _parameters(budget, self.experiment.shape)
        return Fit(budget, seconds, self.process_mib - spared * copies)

    def _upload_seconds(self, budget: Budget) -> float:
        if self.limits.uplink_mbit is None:
            return 0.0
        training = self.experiment.training
        each = bytes_per_number(training.upload, self.experiment.shape.dim)
        head = self.head if training.train_head else 0
        return (_parameters(budget, self.experiment.shape) + head) * each / (self.limits.uplink_mbit * MEGABIT)


def _parameters(budget: Budget, shape: ExpertShape) -> int:
    return len(budget.blocks) * shape.block_parameters(budget.experts)


def order(budget: Budget) -> tuple[int, int, int]:
    """What is larger: more adapted blocks, then more experts to hold, then more of them for a token.

    Blocks come first since a client trains nothing of a block that it leaves out; of experts that it does not hold,
    others train some.
    """
    return len(budget.blocks), budget.experts, budget.top_k


def candidates(experiment: Experiment) -> list[Budget]:
    """Every budget of the recipe's pool, the largest first: its last blocks, and no larger top_k than a tier has."""
    blocks, pool = experiment.largest.blocks, experiment.recipe.adapter.num_experts
    most = max(tier.top_k for tier in experiment.tiers)
    return [
        Budget("measured", top_k, experts, blocks[-last:])
        for last, experts in itertools.product(range(len(blocks), 0, -1), range(pool, 0, -1))
        for top_k in range(min(most, experts), 0, -1)
    ]


def largest(budgets: Sequence[Budget], fit: Callable[[Budget], Fit], limits: Limits) -> tuple[Fit, str]:
    """The first that keeps within the limits, and what the one before it would have broken.

    Args:
        budgets: the largest first.

    Raises:
        InputError: none does.
    """
    before = None
    for budget in budgets:
        found = fit(budget)
        if found.seconds <= limits.deadline_seconds and found.memory_mib <= limits.memory_mib:
            return found, "the recipe's pool: nothing larger is in it" if before is None else _broken(before, limits)
        before = found
    assert before is not None
    raise InputError(
        f"no budget fits this machine: even the smallest breaks {_broken(before, limits)}; "
        "raise --deadline or --memory-mib, lower federation.local_steps, batch_size or data.max_length, or take a "
        "smaller backbone"
    )


def _broken(fit: Fit, limits: Limits) -> str:
    """Which limits this one breaks, and by how much."""
    broken = []
    if fit.seconds > limits.deadline_seconds:
        over = fit.seconds - limits.deadline_seconds
        broken.append(
            f"the deadline: {_named(fit.budget)} would take {fit.seconds:.3g} s a round of "
            f"{limits.deadline_seconds:g} s, {over:.2g} s too long"
        )
    if fit.memory_mib > limits.memory_mib:
        over = fit.memory_mib - limits.memory_mib
        broken.append(
            f"the memory: {_named(fit.budget)} would take {fit.memory_mib:.0f} MiB of {limits.memory_mib:.0f} MiB, "
            f"{over:.0f} MiB too much"
        )
    return "; ".join(broken)


def _named(budget: Budget) -> str:
    return f"{budget.top_k} of {budget.experts} experts in {len(budget.blocks)} blocks"


def as_yaml(found: Profile, recipe: Recipe) -> str:
    """The chosen budget as a tier to put under a recipe's `budgets`, with what it was chosen by."""
    fit, limits = found.chosen, found.limits
    budget = fit.budget
    uplink = "" if limits.uplink_mbit is None else f", uplink {limits.uplink_mbit:g} Mbit/s"
    return (
        f"# Measured for recipe {recipe.name}: a round of {found.steps:g} steps takes about {fit.seconds:.3g} s here,\n"
        f"# and the process {fit.memory_mib:.0f} MiB; within {limits.deadline_seconds:g} s and "
        f"{limits.memory_mib:.0f} MiB{uplink}.\n"
        "budgets:\n"
        f"  - {{name: {budget.name}, fraction: 1.0, top_k: {budget.top_k}, experts: {budget.experts}, "
        f"blocks: last-{len(budget.blocks)}}}\n"
    )
