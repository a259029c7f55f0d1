"""Makes the timed forecast: seconds of a client's round, from a few timed steps of the real client.

A round of s steps with k of E experts in B blocks is predicted to take

    t = per_round + s * (per_step + B * (per_block + E * per_expert + k * per_top_k))

seconds, with no coefficient below zero. `per_step` holds the head, the optimizer and the frozen blocks above the
adapter; `per_block` is what a backward pass through one more block costs, so that fewer blocks are quicker.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fftmoe.cost.workload import Workload
from fftmoe.data.batches import POOL_BATCHES
from fftmoe.engines.base import Handler
from fftmoe.methods.base import Method
from fftmoe.records import Budget, pack_plan
from fftmoe.rng import numpy_generator
from fftmoe.server.plan import plan_round


@dataclass(frozen=True)
class TimedBudget:
    """Holds a budget and the seconds that some steps with it took.

    Attributes:
        seconds: the median, where they were timed several times.
        spread: the largest less the smallest of them, over the median.
    """

    budget: Budget
    steps: int
    seconds: float
    spread: float = 0.0


@dataclass(frozen=True)
class RoundTime:
    """Holds the coefficients of the module's formula, in seconds."""

    per_round: float
    per_step: float
    per_block: float
    per_expert: float
    per_top_k: float

    @classmethod
    def fitted(cls, points: Sequence[TimedBudget]) -> "RoundTime":
        """Return the coefficients with the least squares of relative errors.

        While one of them is negative, the most negative is set to zero and the others are fitted again. Five unlike
        points determine all coefficients; of fewer points the smallest coefficients are taken that fit them, and these
        put nearly all of the time into the steps.
        """
        rows = np.array([_terms(point.budget, point.steps) for point in points]) / [[p.seconds] for p in points]
        kept = list(range(rows.shape[1]))
        while True:
            solution = np.linalg.lstsq(rows[:, kept], np.ones(len(rows)), rcond=None)[0]
            if not (solution < 0).any():
                break
            del kept[int(solution.argmin())]
        coefficients = np.zeros(rows.shape[1])
        coefficients[kept] = solution
        return cls(*map(float, coefficients))

    def seconds(self, budget: Budget, steps: float) -> float:
        """Return the prediction for a round of so many steps, without the network."""
        coefficients = (self.per_round, self.per_step, self.per_block, self.per_expert, self.per_top_k)
        return sum(a * b for a, b in zip(coefficients, _terms(budget, steps), strict=True))


def _terms(budget: Budget, steps: float) -> tuple[float, ...]:
    """Return what each coefficient of `RoundTime` is multiplied with."""
    in_blocks = steps * len(budget.blocks)
    return 1.0, steps, in_blocks, in_blocks * budget.experts, in_blocks * budget.top_k


@dataclass(frozen=True)
class PreparedClients:
    """Holds clients that are ready to train: what a plan for them is made with, and what answers their messages."""

    method: Method
    budgets: Mapping[int, Budget]
    handler: Handler


PrepareClients = Callable[[Budget, Mapping[int, np.ndarray]], PreparedClients]
"""`(budget, rows)` to clients with this budget, each with the training examples `rows[client_id]`."""


class TimedClient:
    """Runs the real client of a run (its backbone, batches, messages), with as many examples as clients have on
    average.

    Its examples are drawn from those of all clients, so that texts have average lengths. Where a run trains several
    clients in one batch, so does this. The model is left with what was trained last, as after a round.

    Args:
        num_together: the clients that train in one batch.
    """

    def __init__(self, workload: Workload, prepare: PrepareClients, num_together: int) -> None:
        self._workload, self._prepare = workload, prepare
        self._num_rows = max(1, round(float(workload.sizes.mean())))
        random = numpy_generator(workload.seed, "timing")
        chosen = random.choice(workload.num_examples, self._num_rows, replace=False)
        self._rows = dict.fromkeys(range(min(num_together, workload.clients_per_round)), chosen)

    def steps(self) -> float:
        """Return the steps of an average client in a round."""
        training = self._workload.training
        if training.local_steps is not None:
            return float(training.local_steps)
        batches = -(-self._workload.sizes // training.batch_size)
        return (training.local_epochs or 1) * float(batches.mean())

    def sample_steps(self) -> int:
        """Return the fewest steps whose batches hold texts of every length, as those of a whole round do."""
        batches = math.ceil(self._num_rows / self._workload.training.batch_size)
        return max(1, min(POOL_BATCHES, batches, round(self.steps())))

    def seconds(self, budget: Budget, steps: int, now: Callable[[], float] = time.perf_counter) -> float:
        """Return the seconds of one client for so many steps, from its message to its answer, on one thread.

        Args:
            budget: a tier of the run, or any other budget within its blocks and its pool.
        """
        clients = self._prepare(budget, self._rows)
        messages = self._messages(clients, steps)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as clients compute
        try:
            started = now()
            clients.handler(messages)
            return (now() - started) / len(messages)
        finally:
            torch.set_num_threads(threads)

    def _messages(self, clients: PreparedClients, steps: int) -> list[bytes]:
        workload, method = self._workload, clients.method
        training = replace(workload.training, local_steps=steps, local_epochs=None)
        plan = plan_round(method, workload.state, 1, list(self._rows), clients.budgets, training, workload.seed)
        return [pack_plan(client, method.download(workload.state, client)) for client in plan.clients]


def time_tiers(client: TimedClient, tiers: Sequence[Budget], largest: Budget) -> dict[str, float]:
    """Return the seconds of an average client's round in each tier, after timing each tier once.

    Args:
        largest: of the tiers; it trains first, to warm up.

    Raises:
        RunError: a loss is no finite number.
    """
    client.seconds(largest, 1)
    steps = client.sample_steps()
    model = RoundTime.fitted([TimedBudget(tier, steps, client.seconds(tier, steps)) for tier in tiers])
    return {tier.name: model.seconds(tier, client.steps()) for tier in tiers}
