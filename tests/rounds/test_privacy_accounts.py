"""The accounts of private runs over whole histories: resumes, other clients, other noise, silent rounds and crashes.

An observer sees what was really released: who was drawn, and how far the noise moved the model. It counts that with
dp-accounting on its own, and the run must never state less.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import NeighboringRelation, pld
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.errors import InputError
from fftmoe.records import Release, RoundPlan, ServerState
from fftmoe.rounds.example_cost import ExampleCost, ExampleRule
from fftmoe.rounds.private import NoiseRule, NoisySums, SumsRule
from fftmoe.setup.privacy import population_of
from fftmoe.store.privacy_ledger import AskedLedger, PrivacyLedger, Spent
from private_updates import Head, update

CLIP, DELTA, CLIENTS = 0.5, 1e-3, 12
GRID = 1e-3  # of the observer; its epsilon is an upper bound too, so it is compared with a tolerance
TOLERANCE = 0.02


@dataclass
class Observed:
    """What an observer has seen of a run: releases as (sampling rate, noise multiplier)."""

    seen: Counter[tuple[float, float]] = field(default_factory=Counter)

    def epsilon(self, relation: NeighboringRelation) -> float:
        if not self.seen:
            return 0.0
        accountant = pld.PLDAccountant(relation, value_discretization_interval=GRID)
        for (rate, noise), times in self.seen.items():
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            accountant.compose(event, times)
        return accountant.get_epsilon(DELTA)


class Crash(Exception):
    """Stands in for a signal."""


@dataclass(frozen=True)
class Part:
    """A part of a history, between two resumes.

    `rounds` has for each round whether clients answer, all are silent, or the process ends before its noise is drawn.
    """

    per_round: int
    noise: float
    rounds: tuple[str, ...]


ROUNDS = st.lists(st.sampled_from(["answered", "silent", "crashed"]), max_size=4).map(tuple)
HISTORIES = st.lists(
    st.builds(Part, st.sampled_from([3, 12]), st.sampled_from([11.0, 23.0]), ROUNDS), min_size=1, max_size=4
)


class Replayed:
    """A run whose rounds are replayed, with chance that can be read off: noise of one, and evenly spread draws."""

    def __init__(self, folder: Path) -> None:
        (folder / "checkpoints").mkdir()
        self.ledger, self.observed, self.crash = PrivacyLedger(folder), Observed(), False
        self.state = ServerState(0, {"head.weight": torch.zeros(3, 5)})

    def draw(self, shape: Sequence[int]) -> torch.Tensor:
        if self.crash:
            raise Crash
        return torch.ones(*shape, dtype=torch.float64)

    def opened(self, part: Part, spent: Spent) -> NoisySums:
        everyone = {"head.weight": torch.full((1,), float(part.per_round), dtype=torch.float64)}
        rule = NoiseRule(part.per_round / CLIENTS, DELTA, None, everyone, part.per_round, None)
        spread = lambda count: np.arange(1, count + 1) / count  # noqa: E731
        return NoisySums(Head(), SumsRule(1), rule, CLIENTS, spent, self.ledger, self.draw, spread)  # type: ignore[arg-type]

    def round(self, sums: NoisySums, part: Part, kind: str) -> None:
        cohort = sums.sample(self.state.round + 1)
        plan = RoundPlan(self.state.round + 1, ())
        silent = () if kind != "answered" else (replace(update(0, (), 0), tensors={"head.weight": torch.zeros(3, 5)}),)
        self.crash = kind == "crashed"
        before = self.state
        try:
            self.state, row = sums.merge(self.state, plan, silent, quorum=0)
        except Crash:
            return
        moved = (self.state.tensors["head.weight"] - before.tensors["head.weight"]) * part.per_round / CLIP
        noise = round(float(moved.mean()), 4)  # in units of the clip norm; zero if no noise was released
        assert noise > 0, "the model must not tell that everyone was silent"
        self.observed.seen[len(cohort) / CLIENTS, noise] += 1
        assert row["epsilon"] >= self.observed.epsilon(NeighboringRelation.ADD_OR_REMOVE_ONE) - TOLERANCE


@given(HISTORIES)
@settings(max_examples=12, deadline=None)
def test_a_run_states_at_least_what_its_whole_history_has_cost(history: list[Part]):
    """The cohorts and the noise may change at every resume, and any round may be silent or may be repeated."""
    with tempfile.TemporaryDirectory() as name:
        run, crashes = Replayed(Path(name)), 0
        for number, part in enumerate(history):
            spent = run.ledger.read() if number else Spent(part.noise, CLIP)
            sums = run.opened(part, replace(spent, noise_multiplier=part.noise))
            sums.record()
            for kind in part.rounds:
                run.round(sums, part, kind)
                crashes += kind == "crashed"
        stated = run.opened(history[-1], run.ledger.read()).summary()
        made = [Release(**values) for values in stated["history"]]
        exact = run.observed.epsilon(NeighboringRelation.ADD_OR_REMOVE_ONE)
        assert stated["epsilon"] >= exact - TOLERANCE
        assert crashes or stated["epsilon"] == pytest.approx(exact, abs=TOLERANCE)
        assert stated["releases"] == sum(run.observed.seen.values()) + crashes == sum(one.times for one in made)


NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class AskedPart:
    """A part of a history of single examples: the clients in their order, with the size of each, and who is asked."""

    order: tuple[str, ...]
    sizes: tuple[int, ...]
    noise: float
    steps: int
    rounds: tuple[tuple[int, ...], ...]


COHORTS = st.lists(st.sets(st.integers(0, 2)).map(lambda ids: tuple(sorted(ids))), max_size=4).map(tuple)
ASKED = st.lists(
    st.builds(
        AskedPart,
        st.permutations(NAMES).map(tuple),
        st.tuples(*[st.sampled_from([4, 16])] * 3),
        st.sampled_from([13.0, 29.0]),
        st.sampled_from([1, 3]),
        COHORTS,
    ),
    min_size=1,
    max_size=4,
)


def swapped(order: tuple[str, ...], client: int) -> AskedPart:
    return AskedPart(order, (16, 16, 16), 13.0, 3, ((client,),) * 3)


def rule_of(part: AskedPart) -> ExampleRule:
    release = Release(sampling_rate(4, min(part.sizes)), part.noise, part.steps)
    return ExampleRule(population_of(part.order), release, DELTA, None, min(part.sizes))


@given(ASKED)
@example([swapped(("a", "b", "c"), 0), swapped(("b", "a", "c"), 1)])  # client a, under two numbers
@settings(max_examples=12, deadline=None)
def test_no_client_has_spent_more_of_its_examples_than_the_run_states(history: list[AskedPart]):
    """The clients may change their places, their sizes and their noise at every resume."""
    observed = {name: Observed() for name in NAMES}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "checkpoints").mkdir()
        ledger = AskedLedger(Path(name))
        ledger.write(())
        for part in history:
            cost = ExampleCost(rule_of(part), ledger, ledger.read())
            for cohort in part.rounds:
                cost.ask(cohort)
                for client in cohort:
                    own = sampling_rate(4, part.sizes[client])
                    observed[part.order[client]].seen[own, part.noise] += part.steps
        exact = [one.epsilon(NeighboringRelation.REPLACE_ONE) for one in observed.values()]
        cost = ExampleCost(rule_of(history[-1]), ledger, ledger.read())
        stated = cost.summary()
        assert stated["epsilon"] >= max(exact) - TOLERANCE
        assert stated["epsilon"] == cost.row()["example_epsilon"]
        once = len(history) == 1 and len(set(history[0].sizes)) == 1
        assert not once or stated["epsilon"] == pytest.approx(max(exact), abs=TOLERANCE)


def test_clients_without_examples_are_refused(tmp_path: Path):
    rule = ExampleRule("them", Release(1.0, 1.0), DELTA, None, 0)
    with pytest.raises(InputError, match="a client has no examples"):
        ExampleCost(rule, AskedLedger(tmp_path), ())
