"""A population of 100,000 costs a few bytes a client, and a round in it what a round costs in any other."""

import dataclasses
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from fftmoe.data import Partition, make_partition
from fftmoe.methods import fft_moe
from fftmoe.methods.base import Method
from fftmoe.methods.budget import Budgets, ExpertShape, assign_tiers
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, ClientPlan, ServerState, Training, pack_plan
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.plan import plan_round
from shared_fixtures import Cli

M, D, H, COHORT = 11, 7, 3, 13
TIERS = tuple(Budget(f"tier-{experts}", 1, experts, (2,), rank=experts) for experts in (2, 3, 5))
TRAINING = Training(batch_size=2, learning_rate=0.01, head_learning_rate=0.5, local_steps=2)
LARGE, SMALL, NUM_EXAMPLES = 100_003, 1_009, 200_009
SHAPES = {"router": (M, D), "up": (M, H, D), "down": (M, H, D)}
STATE = ServerState(
    round=0,
    tensors={f"blocks.2.{part}": torch.zeros(shape) for part, shape in SHAPES.items()},
    load={"blocks.2": torch.full((M,), 1 / M, dtype=torch.float64)},
)


def compose(num_clients: int) -> tuple[Partition, FftMoe]:
    labels = np.arange(NUM_EXAMPLES) % 5
    partition = make_partition("iid", labels=labels, num_clients=num_clients, seed=1)
    budgets = Budgets.of(TIERS, assign_tiers([0.5, 0.3, 0.2], num_clients, seed=1))
    return partition, FftMoe(budgets=budgets, shape=ExpertShape(D, H), num_experts=M)


def planned(moe: FftMoe, round: int) -> tuple[ClientPlan, ...]:
    cohort = choose_cohort(len(moe.budgets), COHORT, seed=1, round=round)
    return plan_round(cast(Method, moe), STATE, round, cohort, moe.budgets, TRAINING, seed=1).clients


@pytest.fixture(scope="module")
def large() -> tuple[Partition, FftMoe]:
    return compose(LARGE)


def traced(num_clients: int) -> dict[str, int]:
    """Bytes that composing a population takes at its peak and afterwards, and that its second round takes."""
    tracemalloc.start()
    partition, moe = compose(num_clients)
    planned(moe, round=1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    planned(moe, round=2)
    second = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert len(partition) == num_clients
    return {"held": held, "peak": peak, "second round": second}


def test_a_large_population_takes_a_few_bytes_for_each_client():
    small, large = traced(SMALL), traced(LARGE)
    # Where its rows begin, its tier, its number in the design and a bit for each expert: 8 + 1 + 8 + 2 bytes.
    assert large["held"] - small["held"] < 24 * (LARGE - SMALL)
    # While the design is made, ids as Python numbers and a byte for each expert; no object that lasts.
    assert large["peak"] - small["peak"] < 40 * (LARGE - SMALL)
    assert large["second round"] < 1.2 * small["second round"]


def test_the_design_is_made_once_for_a_method(monkeypatch: pytest.MonkeyPatch):
    made = []

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return balanced_design(*arguments)

    balanced_design = fft_moe.balanced_design
    monkeypatch.setattr(fft_moe, "balanced_design", counted)
    _, moe = compose(SMALL)
    first = [planned(moe, round) for round in range(1, 4)]
    assert len(made) == 1
    other = dataclasses.replace(moe, seed=1)
    assert [planned(other, round) for round in range(1, 4)] != first
    assert len(made) == 2  # another value of the method has its own


def test_what_a_worker_process_is_sent_once_is_a_few_bytes_for_each_client(large: tuple[Partition, FftMoe]):
    partition, moe = large
    planned(moe, round=1)
    spec = pickle.dumps((partition.indices, moe))
    assert len(spec) < 8 * NUM_EXAMPLES + (8 + 1) * LARGE + 10_000
    _, copy = pickle.loads(spec)
    assert copy == moe
    assert planned(copy, round=2) == planned(moe, round=2)


def test_the_size_of_a_message_does_not_depend_on_the_population(large: tuple[Partition, FftMoe]):
    def lengths(moe: FftMoe) -> dict[str, int]:
        return {c.budget.name: len(pack_plan(c, moe.download(STATE, c))) for c in planned(moe, round=1)}

    among_few, among_many = lengths(compose(SMALL)[1]), lengths(large[1])
    assert among_few.keys() == among_many.keys()
    for tier, length in among_few.items():
        assert abs(length - among_many[tier]) < 16  # digits of the client's number, its seed and its experts


def test_the_smallest_rank_is_computed_once():
    class Counted(dict[int, Budget]):
        passes = 0

        def values(self) -> Any:
            self.passes += 1
            return super().values()

    budgets = Counted(enumerate(TIERS))
    method = FedIt(budgets, {})
    assert [method.rank(tier) for tier in TIERS] == [2, 2, 2]
    assert budgets.passes == 1


def test_personal_models_can_be_measured_on_a_sample_of_the_clients(cli: Cli, recipe_file: Path, tmp_path: Path):
    def summary(*settings: str) -> dict[str, Any]:
        base = ("evaluation.local_only=false", "trackers=[]", "evaluation.personal=true", *settings)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        sets = [part for setting in base for part in ("--set", setting)]
        assert cli("run", recipe_file, "--output", folder, *sets).status == 0
        return json.loads((folder / "summary.json").read_text())

    unsampled, same, two = (
        summary(*s) for s in ((), ["evaluation.personal_clients=7"], ["evaluation.personal_clients=2"])
    )
    assert same["reweighted_personal_accuracy"] == unsampled["reweighted_personal_accuracy"]
    assert two["reweighted_personal_accuracy"] != unsampled["reweighted_personal_accuracy"]
    # The federation itself is the same, and so is its global model on all clients' own mixes.
    assert two["reweighted_accuracy"] == unsampled["reweighted_accuracy"]
    sampled = summary("method=local-only", "head.kind=averaged", "evaluation.personal_clients=1")
    # One client is one tier, and there is nothing to say of the other.
    assert len(sampled["accuracy_by_tier"]) == 1
    assert sampled["reweighted_accuracy"]["mean"] == sampled["reweighted_accuracy"]["worst_decile"]
