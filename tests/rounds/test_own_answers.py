"""Clients' own values: personal answers are those of the common model corrected by hand, and their summary adds up."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.data import Ragged
from fftmoe.evaluate import HEAD_INPUTS
from fftmoe.head import (
    PRIOR_STRENGTHS,
    HeadSums,
    LabelTotals,
    OneLabel,
    best_strength,
    prior_shift,
    smoothed_shares,
    solve_ridge,
    strength_losses,
)
from fftmoe.records import ServerState
from fftmoe.rng import generator
from fftmoe.rounds.own_answers import Corrections, OnOwnMixes, OnOwnRows, OwnLabels, OwnRows
from fftmoe.rounds.own_choice import Choice
from fftmoe.rounds.own_data import own_data
from fftmoe.tasks import Classification

N, C, K = 53, 5, 3
WHOLE = (0.3, 0.1, 0.2, 0.15, 0.25)
TASK = Classification()


def drawn(seed: int) -> tuple[Tensor, Tensor, Corrections]:
    source = generator(seed, "drawn")
    shifts = torch.randn(K, C, generator=source)
    choices = [Choice(strength, None, 0.0) for strength in (0.25, 1.0, 0.5)]
    outputs, labels = torch.randn(N, C, generator=source), torch.randint(C, (N,), generator=source)
    return outputs, labels, Corrections(shifts, 0.5, choices)


def shown_in_batches(observe: Any, outputs: Tensor, labels: Tensor, seed: int) -> None:
    """In batches of any rows, as evaluation sorts them by length."""
    for rows in torch.randperm(N, generator=generator(seed, "order")).split(7):
        observe(outputs[rows], {"labels": labels[rows]}, rows)


def right(outputs: Tensor, labels: Tensor, corrections: Corrections, place: int) -> np.ndarray:
    logits = outputs / 0.5 + corrections.choices[place].strength * corrections.shifts[place]
    return (logits.argmax(1) == labels).double().numpy()


@given(seed=st.integers(0, 2**31))
def test_answers_on_own_rows_are_those_of_the_corrected_outputs(seed: int):
    outputs, labels, corrections = drawn(seed)
    owners = torch.randint(K + 1, (N,), generator=generator(seed, "owners")).numpy()  # some rows are of nobody
    owners[owners == 1] = 0  # and the second client has none
    own = Ragged.of([np.flatnonzero(owners == client) for client in range(K)])
    found = OnOwnRows(TASK, corrections, range(K), own, N)
    shown_in_batches(found, outputs, labels, seed)
    expected = [right(outputs, labels, corrections, k)[own[k]].mean() if len(own[k]) else np.nan for k in range(K)]
    np.testing.assert_allclose(found.values(), expected, rtol=1e-12)  # sums of ones, divided once
    assert np.isnan(found.values()[1])


@given(seed=st.integers(0, 2**31))
def test_answers_on_own_mixes_weigh_each_stratum(seed: int):
    outputs, labels, corrections = drawn(seed)
    mixes = torch.rand(K, C, generator=generator(seed, "mixes")).numpy().astype(float)
    mixes /= mixes.sum(1, keepdims=True)
    found = OnOwnMixes(TASK, corrections, labels, mixes)
    shown_in_batches(found, outputs, labels, seed)
    there = [c for c in range(C) if (labels == c).any()]
    for k in range(K):
        by_label = np.array([right(outputs, labels, corrections, k)[(labels == c).numpy()].mean() for c in there])
        expected = (by_label * mixes[k, there]).sum() / mixes[k, there].sum()
        np.testing.assert_allclose(found.values()[k], expected, rtol=1e-12)  # the order of a few sums differs


@dataclass(frozen=True)
class Rows:
    """Examples that are known by their numbers."""

    numbers: Tensor

    def select(self, rows: Tensor) -> "Rows":
        return Rows(self.numbers[rows])


def own_labels(
    totals: Callable[[int], LabelTotals],
    rows: Callable[[int], OwnRows] = lambda _: OwnRows(np.arange(0), np.arange(3)),
    solved: bool = False,
) -> OwnLabels:
    return OwnLabels(OneLabel(), totals, cast(Any, Rows(torch.arange(N))), rows, solved)


def shower(outputs: Tensor, labels: Tensor, features: Tensor | None = None) -> Any:
    """What shows a model's outputs for rows to an observer, in batches."""

    def show(rows: Any, observe: Any, head_inputs: bool) -> None:
        for part in torch.arange(len(rows.numbers)).split(11):
            at = rows.numbers[part]
            read = {HEAD_INPUTS: features[at]} if head_inputs and features is not None else {}
            observe(outputs[at], {"labels": labels[at], **read}, part)

    return show


@pytest.mark.parametrize("counted", [False, True])
@given(seed=st.integers(0, 2**31))
def test_a_client_chooses_the_strength_that_fits_its_own_rows(counted: bool, seed: int):
    """Each client has the rows that are its number modulo K, and chooses by those of them below 40."""
    outputs, labels, _ = drawn(seed)
    totals = [LabelTotals.of(labels[k::K], C, OneLabel()) for k in range(K)]
    none = np.arange(0)

    def rows(client: int) -> OwnRows:
        judging = np.arange(client, 40, K)
        return OwnRows(judging, none) if counted else OwnRows(none, judging)

    own = own_labels(totals.__getitem__, rows)
    found = own.chosen(ServerState(0, {}, label_shares=WHOLE), [2, 0], shower(outputs, labels))
    assert found is not None
    whole = np.array(WHOLE)
    for place, client in enumerate([2, 0]):
        counts = np.bincount(labels[client::K].numpy(), minlength=C)
        errors = np.zeros(len(PRIOR_STRENGTHS))
        for row in range(client, 40, K):
            others = counts - (np.arange(C) == int(labels[row])) if counted else counts
            shift = np.log((others + whole) / (others.sum() + 1)) - np.log(whole)
            for at, strength in enumerate(PRIOR_STRENGTHS):
                logits = outputs[row].double().numpy() + strength * shift
                errors[at] += np.log(np.exp(logits).sum()) - logits[int(labels[row])]
        chosen = PRIOR_STRENGTHS.index(found.choices[place].strength)
        assert errors[chosen] <= errors.min() + 1e-9  # sums in another order


def test_a_model_that_knows_the_clients_is_not_corrected():
    """The outputs are the probabilities at the client: more of its shares make them worse."""
    shares, rows = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64), 997
    labels = torch.multinomial(shares, rows, replacement=True, generator=generator(5, "labels"))
    whole, own = torch.tensor(WHOLE, dtype=torch.float64), LabelTotals.of(labels, C, OneLabel())
    knowing, ignorant = shares.log().expand(rows, C), whole.log().expand(rows, C)
    shift = prior_shift(own.shares(OneLabel()), whole, OneLabel())
    for logits, best in ((knowing, 0.0), (ignorant, 1.0)):
        assert best_strength(strength_losses(logits, labels, shift, OneLabel()).sum(1)) == best
    assert best_strength(torch.zeros(len(PRIOR_STRENGTHS))) == 1.0  # no row tells them apart


def test_one_row_says_nothing_of_itself():
    """Without the row that is judged there are everyone's shares, so every strength is as good."""
    labels, whole = torch.tensor([3]), torch.tensor(WHOLE, dtype=torch.float64)
    others = LabelTotals.of(labels, C, OneLabel()).without_each(labels, OneLabel())
    shift = prior_shift(smoothed_shares(others, whole, OneLabel()), whole, OneLabel())
    scores = strength_losses(torch.randn(1, C), labels, shift, OneLabel())
    assert torch.equal(scores, scores[:1].expand(len(PRIOR_STRENGTHS), 1))


def test_a_client_adds_what_its_smoothed_shares_say():
    counts = ([7.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 4.0, 0.0, 0.0])
    totals = [LabelTotals(torch.tensor(own).double(), sum(own)) for own in counts]
    show = shower(torch.zeros(N, C), torch.zeros(N, dtype=torch.int64))
    found = own_labels(totals.__getitem__).chosen(ServerState(0, {}, label_shares=WHOLE), [1, 0], show)
    assert found is not None
    assert found.temperature == 1.0
    whole = np.array(WHOLE)
    smoothed = (np.array(counts)[[1, 0]] + whole) / 8
    np.testing.assert_allclose(found.shifts.numpy(), np.log(smoothed / whole), rtol=1e-5)  # kept in float32


@pytest.mark.parametrize(
    ("solved", "temperature", "shares", "can"),
    [
        (True, 0.25, WHOLE, True),
        (True, None, WHOLE, False),  # its outputs are no logits
        (False, None, WHOLE, True),
        (False, None, None, False),
        (True, 0.25, None, False),
    ],
)
def test_nothing_is_corrected_without_logits_and_shares(
    solved: bool, temperature: float | None, shares: Any, can: bool
):
    totals = LabelTotals(torch.ones(C).double(), C)
    own, state = own_labels(lambda _: totals, solved=solved), ServerState(0, {}, temperature=temperature)
    show = shower(torch.zeros(N, C), torch.zeros(N, dtype=torch.int64))
    found = own.chosen(replace(state, label_shares=shares), [0], show)
    assert (found is not None) == can
    assert found is None or found.temperature == (temperature or 1.0)


@pytest.mark.parametrize("set_aside", [False, True])
def test_a_client_with_other_answers_takes_a_private_part(set_aside: bool):
    """The head gives everyone's label, and the client calls each label by the next one's name."""
    truly = torch.arange(N) % C
    features, labels = 3.0 * torch.eye(C)[truly] + 0.1, (truly + 1) % C
    outputs = torch.eye(C)[truly]
    shares, even = LabelTotals.of(labels, C, OneLabel()), (1 / C,) * C
    numbers = np.arange(N)
    rows = OwnRows(numbers[::2], numbers[1::2]) if set_aside else OwnRows(numbers, numbers[:0])
    show = shower(outputs, labels, features)
    state = ServerState(0, {}, label_shares=even, temperature=0.25)
    found = own_labels(lambda _: shares, lambda _: rows, solved=True).chosen(state, [0], show)
    assert found is not None
    (choice,) = found.choices
    assert choice.name == "private part"
    assert choice.margin > 1.0  # nats, of certain answers that are wrong
    assert found.need_head_inputs
    alike = found.of_client(outputs, 0, features)
    assert torch.equal(alike.argmax(1), labels)
    assert torch.equal(found.of_rows(outputs, torch.zeros(N, dtype=torch.int64), features), alike)
    # Of a model whose head has been divided already the same follows.
    divided = replace(own_labels(lambda _: shares, lambda _: rows, solved=True), divided=True)
    again = divided.chosen(state, [0], shower(outputs / 0.25, labels, features))
    assert again is not None
    assert again.temperature == 1.0
    assert torch.allclose(again.of_client(outputs / 0.25, 0, features), alike, rtol=1e-5, atol=1e-5)


def test_a_client_that_is_like_everyone_loses_nothing():
    """What 30 rows teach beside those of everyone is judged by 23 others, and costs little on new rows."""
    source = generator(7, "labels")
    truly, features = torch.randn(11, C, generator=source), torch.randn(1997, 11, generator=source)
    labels = torch.multinomial((features @ truly).softmax(1), 1, generator=source)[:, 0]
    weight, bias, _ = solve_ridge(HeadSums.of(features, labels, C))
    outputs, temperature = features @ weight.T + bias, 0.2
    totals, rows = LabelTotals.of(labels[:30], C, OneLabel()), OwnRows(np.arange(30), np.arange(30, N))
    even = tuple((torch.bincount(labels, minlength=C) / len(labels)).tolist())
    state = ServerState(0, {}, label_shares=even, temperature=temperature)
    show = shower(outputs, labels, features)
    found = own_labels(lambda _: totals, lambda _: rows, solved=True).chosen(state, [0], show)
    assert found is not None
    new = slice(N, None)
    common, own = outputs[new] / temperature, found.of_client(outputs[new], 0, features[new])
    errors = [float(OneLabel().cross_entropies(logits, labels[new]).mean()) for logits in (common, own)]
    assert errors[1] < errors[0] + 0.05
    assert found.choices[0].margin < 0.1


def test_a_trained_head_has_no_private_part():
    labels = torch.arange(N) % C
    totals, rows = LabelTotals.of(labels, C, OneLabel()), OwnRows(np.arange(N), np.arange(0))
    show = shower(torch.zeros(N, C), labels, torch.eye(C)[labels])
    found = own_labels(lambda _: totals, lambda _: rows).chosen(ServerState(0, {}, label_shares=WHOLE), [0], show)
    assert found is not None
    assert not found.need_head_inputs


def test_the_summary_of_own_data():
    listed = {"accuracy": [0.5, 0.75, 0.25, None], "personal": [0.75, 0.75, 0.5, None], "alone": [0.5, 1.0, 0.5, 0.1]}
    found = own_data(listed, "accuracy", higher_is_better=True)
    assert found == {
        "alone": {"mean": 0.525, "worst": 0.1},
        "global": {"mean": 0.5, "worst": 0.25},
        "personal": {"mean": pytest.approx(2 / 3), "worst": 0.5},
        "gain_over_alone": {
            "mean": 0.0,
            "worst": -0.25,
            "share_of_clients": pytest.approx(2 / 3),
            "num_clients": 3,
        },
    }


def test_the_summary_of_errors_and_of_what_is_not_known():
    found = own_data({"loss": [1.0, 3.0], "alone": [2.0, 2.5]}, "loss", higher_is_better=False)
    assert found["global"] == {"mean": 2.0, "worst": 3.0}
    assert found["gain_over_alone"] == {"mean": 0.25, "worst": -0.5, "share_of_clients": 0.5, "num_clients": 2}
    assert own_data({"loss": [1.0, 3.0]}, "loss", False) == {"global": {"mean": 2.0, "worst": 3.0}}
    assert own_data({}, "loss", False) == {}
    assert own_data({"tier": ["a"], "loss": [None]}, "loss", False) == {}
