"""Finds the largest budget that fits this machine: a few budgets are timed, and the forecast is made for all others."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fftmoe.cost.analytic import adapter_cost, budget_order
from fftmoe.cost.machine import total_mib
from fftmoe.cost.timed import RoundTime, TimedBudget, TimedClient
from fftmoe.cost.workload import Workload
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.errors import InputError
from fftmoe.methods.budget import MIB
from fftmoe.records import Budget
from fftmoe.records.codec import bytes_per_number
from fftmoe.shown import count_of

REPEATS = 3
MEGABIT = 1e6 / 8  # bytes


@dataclass(frozen=True)
class RoundLimits:
    """States what a client's round may take on this machine.

    Attributes:
        memory_mib: of the whole process.
        uplink_mbit: megabits a second to the server; None: an upload takes no time.
    """

    deadline_seconds: float
    memory_mib: float
    uplink_mbit: float | None = None


@dataclass(frozen=True)
class PredictedRound:
    """States what a round with a budget is predicted to take: seconds with the upload,
    and the peak memory of the process.
    """

    budget: Budget
    seconds: float
    memory_mib: float


@dataclass(frozen=True)
class MachineProfile:
    """Holds what was measured of this machine, and the largest budget that fits it.

    Attributes:
        points: the budgets that were timed. speed: the coefficients that were fitted to them.
        steps: of an average client in a round.
        total_mib, available_mib: of memory, within the limits of control groups.
        process_mib: the peak memory of this process, after the largest point.
        chosen: the largest budget that fits. bound: which limit the next larger budget would break, in words.
        tiers: what the tiers of the recipe are predicted to take here.
    """

    points: tuple[TimedBudget, ...]
    speed: RoundTime
    steps: float
    total_mib: float
    available_mib: float
    process_mib: float
    limits: RoundLimits
    chosen: PredictedRound
    bound: str
    tiers: tuple[PredictedRound, ...]


def profile_machine(
    workload: Workload,
    client: TimedClient,
    limits: RoundLimits,
    available_mib: float,
    say: Callable[[str], None] = lambda _: None,
) -> MachineProfile:
    """Time this machine on the clients of a run, and choose a budget for it.

    Args:
        available_mib: the memory that was free before the run was loaded.
        say: called with a line for each budget that was timed.

    Raises:
        InputError: no budget fits.
    """
    points = tuple(time_budgets(workload, client, say))
    predictor = RoundPredictor(
        speed=RoundTime.fitted(points),
        steps=client.steps(),
        workload=workload,
        uplink_mbit=limits.uplink_mbit,
        process_mib=peak_rss_mib(),
        measured=max((point.budget for point in points), key=budget_order),
    )
    chosen, bound = largest_within(candidate_budgets(workload), predictor.predict, limits)
    return MachineProfile(
        points=points,
        speed=predictor.speed,
        steps=predictor.steps,
        total_mib=total_mib(),
        available_mib=available_mib,
        process_mib=predictor.process_mib,
        limits=limits,
        chosen=chosen,
        bound=bound,
        tiers=tuple(map(predictor.predict, workload.tiers)),
    )


def time_budgets(workload: Workload, client: TimedClient, say: Callable[[str], None]) -> list[TimedBudget]:
    """Time the budgets that separate the coefficients: fewer blocks, fewer experts, a smaller top_k, more steps."""
    blocks, steps = workload.largest.blocks, client.sample_steps()
    few = min(tier.experts for tier in workload.tiers)
    everything = Budget("everything", _largest_top_k(workload), workload.num_experts, blocks)
    settings = [
        (everything, steps),
        (everything, 2 * steps),
        (replace(everything, top_k=1), steps),
        (replace(everything, top_k=1, experts=few), steps),
        (replace(everything, top_k=1, experts=few, blocks=blocks[-1:]), steps),
    ]
    points = []
    for budget, count in dict.fromkeys(settings):
        seconds = [client.seconds(budget, count) for _ in range(1 + REPEATS)][1:]  # the first one warms up
        median = statistics.median(seconds)
        points.append(TimedBudget(budget, count, median, (max(seconds) - min(seconds)) / median))
        say(
            f"timed {_budget_text(budget)}, {count_of(count, 'step')}: {median:.3f} s, median of {REPEATS}, spread "
            f"{points[-1].spread:.0%}"
        )
    return points


def _largest_top_k(workload: Workload) -> int:
    return max(tier.top_k for tier in workload.tiers)


@dataclass(frozen=True)
class RoundPredictor:
    """Predicts what a round with any budget takes on this machine.

    Attributes:
        steps: of the round. uplink_mbit: see `RoundLimits`.
        process_mib: the peak memory of the process when `measured` was the largest budget that it had trained.
    """

    speed: RoundTime
    steps: float
    workload: Workload
    uplink_mbit: float | None
    process_mib: float
    measured: Budget

    def predict(self, budget: Budget) -> PredictedRound:
        """Return the prediction for one budget."""
        shape, upload = self.workload.shape, self.workload.training.upload
        cost, measured = (adapter_cost(each, shape, upload) for each in (budget, self.measured))
        memory = self.process_mib - (measured.training_bytes - cost.training_bytes) / MIB
        return PredictedRound(budget, self.speed.seconds(budget, self.steps) + self._upload(cost.bytes_up), memory)

    def _upload(self, adapter_bytes: float) -> float:
        """Return the seconds for an upload of the adapter, with the head where clients train it."""
        if self.uplink_mbit is None:
            return 0.0
        training = self.workload.training
        head = self.workload.head_parameters if training.train_head else 0
        each = bytes_per_number(training.upload, self.workload.shape.dim)
        return (adapter_bytes + head * each) / (self.uplink_mbit * MEGABIT)


def candidate_budgets(workload: Workload) -> list[Budget]:
    """Return every budget within the recipe's pool, the largest first: its last blocks,
    and top_k up to that of some tier.
    """
    blocks, pool, most = workload.largest.blocks, workload.num_experts, _largest_top_k(workload)
    return [
        Budget("measured", top_k, experts, blocks[-last:])
        for last, experts in itertools.product(range(len(blocks), 0, -1), range(pool, 0, -1))
        for top_k in range(min(most, experts), 0, -1)
    ]


def largest_within(
    budgets: Sequence[Budget], predict: Callable[[Budget], PredictedRound], limits: RoundLimits
) -> tuple[PredictedRound, str]:
    """Return the first budget within the limits, and what the budget before it would have broken.

    Args:
        budgets: the largest first.

    Raises:
        InputError: no budget is within the limits.
    """
    before = None
    for budget in budgets:
        predicted = predict(budget)
        if predicted.seconds <= limits.deadline_seconds and predicted.memory_mib <= limits.memory_mib:
            bound = "the recipe's pool: nothing larger is in it" if before is None else _broken_limits(before, limits)
            return predicted, bound
        before = predicted
    assert before is not None
    raise InputError(
        f"no budget fits this machine: even the smallest breaks {_broken_limits(before, limits)}; "
        "raise --deadline or --memory-mib, lower federation.local_steps, batch_size or data.max_length, or take a "
        "smaller backbone"
    )


def _broken_limits(predicted: PredictedRound, limits: RoundLimits) -> str:
    """Return which limits this round breaks, and by how much."""
    broken, budget = [], _budget_text(predicted.budget)
    if (over := predicted.seconds - limits.deadline_seconds) > 0:
        broken.append(
            f"the deadline: {budget} would take {predicted.seconds:.3g} s a round of "
            f"{limits.deadline_seconds:g} s, {over:.2g} s too long"
        )
    if (over := predicted.memory_mib - limits.memory_mib) > 0:
        broken.append(
            f"the memory: {budget} would take {predicted.memory_mib:.0f} MiB of {limits.memory_mib:.0f} MiB, "
            f"{over:.0f} MiB too much"
        )
    return "; ".join(broken)


def _budget_text(budget: Budget) -> str:
    return f"{budget.top_k} of {count_of(budget.experts, 'expert')} in {count_of(len(budget.blocks), 'block')}"


def tier_as_yaml(profile: MachineProfile, recipe_name: str) -> str:
    """Return the chosen budget as a tier for a recipe's `budgets`, with the reasons for it in comments."""
    chosen, limits = profile.chosen, profile.limits
    budget = chosen.budget
    uplink = "" if limits.uplink_mbit is None else f", uplink {limits.uplink_mbit:g} Mbit/s"
    return (
        f"# Measured for recipe {recipe_name}: a round of {profile.steps:g} steps takes about {chosen.seconds:.3g} s "
        "here,\n"
        f"# and the process {chosen.memory_mib:.0f} MiB; within {limits.deadline_seconds:g} s and "
        f"{limits.memory_mib:.0f} MiB{uplink}.\n"
        "budgets:\n"
        f"  - {{name: {budget.name}, fraction: 1.0, top_k: {budget.top_k}, experts: {budget.experts}, "
        f"blocks: last-{len(budget.blocks)}}}\n"
    )
