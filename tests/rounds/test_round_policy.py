"""How many clients a round asks, and after which round the average is served."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fftmoe.records import RoundPlan, ServerState
from fftmoe.rounds.policy import Policy, UniformCohort


def engine(reliable: bool, absent: Collection[int] = ()) -> Any:
    return SimpleNamespace(reliable=reliable, absent=lambda: absent)


@pytest.mark.parametrize(
    ("reliable", "clients", "extra", "size"), [(True, 9, 2, 3), (False, 9, 2, 5), (False, 4, 2, 4), (False, 9, 0, 3)]
)
def test_more_clients_are_asked_where_some_may_not_answer(reliable: bool, clients: int, extra: int, size: int):
    cohort = UniformCohort(clients, 3, 0, engine(reliable), extra)
    for round in range(1, 6):
        drawn = cohort(round)
        assert len(drawn) == size
        assert set(drawn) <= set(range(clients))
        assert list(drawn) == sorted(set(drawn))
    assert len({cohort(round) for round in range(1, 30)}) > 1 or clients == size


def test_absent_clients_are_replaced():
    assert UniformCohort(5, 3, 0, engine(True, {0, 2}))(1) == (1, 3, 4)


class Doubling:
    """Doubles the model in every round."""

    def reason_to_end(self, round: int) -> str | None:
        return None

    def before_sending(self, plan: RoundPlan) -> None:
        """Nothing to count."""

    def merge(self, state: ServerState, plan: RoundPlan, updates: Any, quorum: int) -> tuple[ServerState, Any]:
        moved = {name: 2 * tensor for name, tensor in state.tensors.items()}
        return ServerState(plan.round, moved, average=state.average), {"quorum": quorum}


def test_the_average_takes_the_place_of_the_model_after_the_last_round():
    """1 becomes 2, 4 and 8; at a decay of 1/2 the average is (4 * 8 + 2 * 4 + 2) / 7 = 6."""
    policy = Policy(lambda round: (0,), Doubling(), quorum=2, enough=None, average_decay=0.5, last_round=3)
    state, seen = ServerState(0, {"head.bias": torch.ones(1)}), []
    for round in (1, 2, 3):
        state, row = policy.merge(state, RoundPlan(round, ()), ())
        seen.append(float(state.tensors["head.bias"]))
        assert row == {"quorum": 2}
    assert seen == pytest.approx([2.0, 4.0, 6.0])
    assert not state.average
