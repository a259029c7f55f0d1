"""When the account of single examples refuses a run, ends it, and what it counts.

Here a release costs its noise multiplier each time, so that costs are whole numbers and borders are met exactly.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.rounds import example_cost
from fftmoe.rounds.example_cost import ExampleCost, ExampleRule
from fftmoe.store.privacy_ledger import AskedLedger, TrainingRequests

RULE = ExampleRule("them", Release(0.5, 3.0, times=2), delta=0.125, epsilon=12.0, fewest_examples=7)
ONCE = 6.0  # what one round costs


@pytest.fixture(autouse=True)
def whole_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        example_cost, "epsilon_of", lambda made, *_: sum(one.noise_multiplier * one.times for one in made)
    )


@pytest.fixture
def ledger(tmp_path: Path) -> AskedLedger:
    (tmp_path / "checkpoints").mkdir()
    return AskedLedger(tmp_path)


def test_the_delta_is_below_one_in_the_number_of_examples(ledger: AskedLedger):
    for examples, fits in ((1, True), (7, True), (8, False), (9, False)):
        rule = replace(RULE, fewest_examples=examples)
        if fits:
            ExampleCost(rule, ledger, ())
            continue
        with pytest.raises(InputError, match=f"would allow the run to reveal one of the {examples} examples"):
            ExampleCost(rule, ledger, ())
    with pytest.raises(InputError, match="a client has no examples"):
        ExampleCost(replace(RULE, fewest_examples=0), ledger, ())


def test_a_single_round_may_cost_the_stated_epsilon_and_no_more(ledger: AskedLedger):
    ExampleCost(replace(RULE, epsilon=ONCE), ledger, ())
    ExampleCost(replace(RULE, epsilon=None), ledger, ())
    with pytest.raises(
        InputError, match=r"a single round costs an epsilon of 6, above privacy\.examples\.epsilon=5\.9"
    ):
        ExampleCost(replace(RULE, epsilon=5.9), ledger, ())


def test_clients_are_asked_while_the_epsilon_suffices_for_one_more_time(ledger: AskedLedger):
    cost = ExampleCost(RULE, ledger, ())
    for client in (0, 1, 0):
        assert cost.may_ask_again()
        assert not cost.summary()["stopped_early"]
        cost.ask([client])
    assert cost.row() == {"example_epsilon": 2 * ONCE, "clients_asked": 3}
    assert not cost.may_ask_again()
    assert cost.summary()["stopped_early"]
    endless = ExampleCost(replace(RULE, epsilon=None), ledger, ledger.read())
    assert endless.may_ask_again()
    assert not endless.stopped_early


def test_earlier_parts_count_as_they_were_made(ledger: AskedLedger):
    """The part with the same clients and noise goes on; another population, or another noise, is another part."""
    ExampleCost(RULE, ledger, ()).ask([0, 1])
    louder = replace(RULE, release=replace(RULE.release, noise_multiplier=5.0), epsilon=None)
    ExampleCost(louder, ledger, ledger.read()).ask([1])
    others = replace(RULE, population="others", epsilon=None)
    ExampleCost(others, ledger, ledger.read()).ask([1])
    cost = ExampleCost(replace(RULE, epsilon=None), ledger, ledger.read())
    cost.ask([1])
    asked = {(part.population, part.release): dict(part.times) for part in ledger.read()}
    assert asked == {
        ("them", RULE.release): {0: 1, 1: 2},
        ("them", louder.release): {1: 1},
        ("others", RULE.release): {1: 1},
    }
    assert cost.row() == {"example_epsilon": 2 * ONCE + 10.0 + ONCE, "clients_asked": 5}
    assert cost.summary()["steps"] == 8


def test_an_account_that_holds_less_than_the_rows_say_is_refused(ledger: AskedLedger):
    cost = ExampleCost(RULE, ledger, [TrainingRequests(RULE.population, RULE.release)])
    cost.ask([0, 1])
    row = {"round": 1, "example_epsilon": ONCE, "clients_asked": 2}
    cost.check_rows([{"round": 0}, row])
    with pytest.raises(InputError, match=r"example_privacy\.json is an older copy: it counts clients_asked 2"):
        cost.check_rows([{**row, "clients_asked": 3}])
    with pytest.raises(InputError, match="was made without the noise"):
        cost.check_rows([{"round": 1}])
