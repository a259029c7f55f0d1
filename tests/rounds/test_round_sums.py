"""What a private round merges, counts and says, with chance that a test chooses.

Here a release costs its noise multiplier each time, so that costs are whole numbers and borders are met exactly.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.errors import InputError
from fftmoe.records import ClientUpdate, Release, RoundPlan, ServerState
from fftmoe.rounds import private
from fftmoe.rounds.private import FROM_ROWS, NoiseRule, NoisySums, SumsOnly, SumsRule
from fftmoe.server.accountant import divided_noise, next_clip_norm
from fftmoe.store.privacy_ledger import PrivacyLedger, Spent
from private_updates import Head

Z, CLIP, CLIENTS = 3.0, 0.5, 4
STATE = ServerState(0, {"head.bias": torch.zeros(1)})
PLAN = RoundPlan(1, tuple(type("Client", (), {"client_id": client}) for client in (2, 5)))  # type: ignore[arg-type]
RULE = NoiseRule(0.5, 1e-3, 10.0, {"head.bias": torch.full((1,), 4.0).double()}, CLIENTS, None)


@pytest.fixture(autouse=True)
def whole_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "epsilon_of", lambda made, *_: sum(one.noise_multiplier * one.times for one in made))


def changes(*values: float) -> list[ClientUpdate]:
    return [ClientUpdate(1, client, 1, {"head.bias": torch.tensor([value])}) for client, value in enumerate(values)]


class Cost:
    """Stands in for the account of single examples; it notes what it was told."""

    def __init__(self, may_ask: bool = True) -> None:
        self.may_ask, self.asked, self.rows = may_ask, list[tuple[int, ...]](), list[Any]()

    def promise(self, rounds_left: int) -> str:
        return f"{rounds_left} more rounds"

    def may_ask_again(self) -> bool:
        return self.may_ask

    def ask(self, cohort: Iterable[int]) -> None:
        self.asked.append(tuple(cohort))

    def check_rows(self, rows: Iterable[Any]) -> None:
        self.rows += rows

    def row(self) -> dict[str, Any]:
        return {"clients_asked": 7}

    def summary(self) -> dict[str, Any]:
        return {"epsilon": 2.0}


def sums_only(cost: Any = None) -> SumsOnly:
    return SumsOnly(Head(), SumsRule(2), cost)  # type: ignore[arg-type]


def test_sums_without_an_account_count_nothing():
    sums = sums_only()
    sums.record()
    sums.check_rows([{"round": 1}])
    sums.before_sending(PLAN)
    assert sums.reason_to_end(3) is None
    assert sums.hides == frozenset()
    assert sums.promise(5) == "private: the server keeps sums over 2 clients or more, and no update"
    assert sums.summary() == {"min_contributors": 2}
    state, row = sums.merge(STATE, PLAN, changes(1.0, 3.0), quorum=1)
    assert float(state.tensors["head.bias"]) == 2.0
    assert row == {}


def test_sums_with_an_account_ask_it():
    cost = Cost()
    sums = sums_only(cost)
    sums.record()
    sums.before_sending(PLAN)
    assert cost.asked == [(), (2, 5)]
    sums.check_rows([{"round": 1}])
    assert cost.rows == [{"round": 1}]
    assert sums.reason_to_end(3) is None
    assert sums_only(Cost(may_ask=False)).reason_to_end(3) == (
        "round 3 would cost more than the stated epsilon: the run ends before it"
    )
    assert sums.hides == FROM_ROWS
    assert sums.promise(5).endswith("and no update; 5 more rounds")
    assert sums.summary() == {"min_contributors": 2, "examples": {"epsilon": 2.0}}
    assert sums.merge(STATE, PLAN, changes(1.0, 3.0), quorum=1)[1] == {"clients_asked": 7}


@pytest.fixture
def ledger(tmp_path: Path) -> PrivacyLedger:
    (tmp_path / "checkpoints").mkdir()
    return PrivacyLedger(tmp_path)


def ones(shape: Sequence[int]) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)


def noisy(ledger: PrivacyLedger, least: int = 1, spent: Spent = Spent(Z, CLIP), **rule: Any) -> NoisySums:  # noqa: B008
    return NoisySums(Head(), SumsRule(least), replace(RULE, **rule), 8, spent, ledger, ones)  # type: ignore[arg-type]


def test_a_first_round_may_cost_the_stated_epsilon_and_no_more(ledger: PrivacyLedger):
    noisy(ledger, epsilon=Z)
    noisy(ledger, epsilon=None)
    noisy(ledger, epsilon=2.9, spent=Spent(Z, CLIP, (Release(0.5, 1.0),)))  # a later part ends before its first round
    with pytest.raises(InputError, match=r"a single round costs an epsilon of 3, above privacy\.epsilon=2\.9"):
        noisy(ledger, epsilon=2.9)


def test_a_run_ends_before_the_round_that_would_exceed_its_epsilon(ledger: PrivacyLedger):
    sums = noisy(ledger, epsilon=2 * Z)
    for round in (1, 2):
        assert sums.reason_to_end(round) is None
        assert not sums.stopped_early
        sums.merge(replace(STATE, round=round - 1), RoundPlan(round, ()), (), quorum=0)
    assert sums.reason_to_end(3) == "round 3 would cost more than the stated epsilon: the run ends before it"
    assert sums.stopped_early
    assert sums.summary()["stopped_early"]
    endless = noisy(ledger, epsilon=None, spent=sums.spent)
    assert endless.reason_to_end(3) is None
    assert not endless.stopped_early


def test_the_number_of_answers_decides_nothing(ledger: PrivacyLedger):
    with pytest.raises(AssertionError, match="the number of answers must decide nothing"):
        noisy(ledger).merge(STATE, PLAN, changes(0.1), quorum=1)


def test_an_account_that_holds_less_than_the_rows_say_is_refused(ledger: PrivacyLedger):
    sums = noisy(ledger, spent=Spent(Z, CLIP, (Release(0.5, Z, 2),)))
    row = {"round": 2, "epsilon": 6.0, "releases": 2}
    sums.check_rows([{"round": 0}, row])
    with pytest.raises(InputError, match=r"privacy\.json is an older copy: it counts releases 2"):
        sums.check_rows([{**row, "releases": 3}])
    with pytest.raises(InputError, match="was made without the noise"):
        sums.check_rows([{"round": 1}])


def test_a_fixed_clip_norm_stays_and_all_the_noise_is_on_the_sum(ledger: PrivacyLedger):
    """Changes of 0.25 and 1, clipped to 0.25 and 0.5, and noise of 3 * 0.5, over 4 expected clients."""
    sums = noisy(ledger)
    state, row = sums.merge(STATE, PLAN, changes(0.25, 1.0), quorum=0)
    assert float(state.tensors["head.bias"]) == pytest.approx((0.75 + Z * CLIP) / CLIENTS)
    assert row == {"epsilon": Z, "releases": 1}
    assert sums.spent == ledger.read() == Spent(Z, CLIP, (Release(0.5, Z),))


def test_a_moving_clip_norm_pays_for_the_count_of_what_is_within(ledger: PrivacyLedger):
    """One of two changes is within the norm, which is no more than half of them, so only the noise moves the norm."""
    sums = noisy(ledger, clip_quantile=0.5)
    state, _ = sums.merge(STATE, PLAN, changes(0.25, 1.0), quorum=0)
    on_sum, on_count = divided_noise(Z)
    assert float(state.tensors["head.bias"]) == pytest.approx((0.75 + on_sum * CLIP) / CLIENTS)
    norm = next_clip_norm(CLIP, 0.5 + on_count / CLIENTS, 0.5)
    assert norm < CLIP
    assert math.isclose(ledger.read().clip_norm, norm)
    assert sums.spent == ledger.read()


def test_a_promise_counts_what_never_changes(ledger: PrivacyLedger):
    """Of four experts and one tensor, two have too few holders; exactly enough are enough."""
    counts = {"blocks.1.up": torch.tensor([1.0, 2.0, 1.5, 4.0]).double(), "head.bias": torch.tensor([3.0]).double()}
    promise = noisy(ledger, least=2, expected=counts).promise(2)
    assert "experts and tensors that too few clients hold never change: 2 of 5" in promise
    assert "epsilon 6 at delta 0.001 after all rounds" in promise
