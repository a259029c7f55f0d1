"""Clients' own values: personal answers are those of the common model corrected by hand, and their summary adds up."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.data import Ragged
from fftmoe.head import LabelTotals, OneLabel
from fftmoe.records import ServerState
from fftmoe.rng import generator
from fftmoe.rounds.own_answers import Corrections, OnOwnMixes, OnOwnRows, OwnLabels
from fftmoe.rounds.own_data import own_data
from fftmoe.tasks import Classification

N, C, K = 53, 5, 3
WHOLE = (0.3, 0.1, 0.2, 0.15, 0.25)
TASK = Classification()


def drawn(seed: int) -> tuple[Tensor, Tensor, Corrections]:
    source = generator(seed, "drawn")
    shifts = torch.randn(K, C, generator=source)
    return torch.randn(N, C, generator=source), torch.randint(C, (N,), generator=source), Corrections(shifts, 0.5)


def shown_in_batches(observe: Any, outputs: Tensor, labels: Tensor, seed: int) -> None:
    """In batches of any rows, as evaluation sorts them by length."""
    for rows in torch.randperm(N, generator=generator(seed, "order")).split(7):
        observe(outputs[rows], {"labels": labels[rows]}, rows)


def right(outputs: Tensor, labels: Tensor, corrections: Corrections, place: int) -> np.ndarray:
    return ((outputs / 0.5 + corrections.shifts[place]).argmax(1) == labels).double().numpy()


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


def test_a_client_adds_what_its_smoothed_shares_say():
    counts = ([7.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 4.0, 0.0, 0.0])
    totals = [LabelTotals(torch.tensor(own).double(), sum(own)) for own in counts]
    own = OwnLabels(OneLabel(), totals.__getitem__, solved=False)
    found = own.corrections(ServerState(0, {}, label_shares=WHOLE), [1, 0])
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
    own = OwnLabels(OneLabel(), lambda _: LabelTotals(torch.ones(C).double(), C), solved)
    found = own.corrections(ServerState(0, {}, temperature=temperature, label_shares=shares), [0])
    assert (found is not None) == can
    assert found is None or found.temperature == (temperature or 1.0)


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
