"""Answers corrected for the shares of labels: Bayes' rule, what smoothing keeps possible, and the estimated shares."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.head import (
    HeadSums,
    LabelAnswers,
    LabelTotals,
    OneLabel,
    are_shares,
    estimated_shares,
    prior_shift,
    smoothed_shares,
)
from fftmoe.head.prior import SMOOTHING
from fftmoe.rng import generator
from fftmoe.tasks import LabelOfTokens, SeveralLabels

N, C = 41, 5
FORMS: dict[str, LabelAnswers] = {"one label": OneLabel(), "tags": LabelOfTokens(), "labels": SeveralLabels()}
every_form = pytest.mark.parametrize("form", FORMS)
seeds = st.integers(0, 2**31)


def shares_of(form: str, seed: int) -> Tensor:
    """Shares of labels, none of them far from what a float64 can tell from 0 and 1."""
    odds = torch.randn(C, generator=generator(seed, "shares"), dtype=torch.float64)
    return odds.sigmoid() if form == "labels" else odds.softmax(0)


def logits_of(seed: int, rows: int = N) -> Tensor:
    return 3 * torch.randn(rows, C, generator=generator(seed, "logits"), dtype=torch.float64)


def labels_of(form: str, seed: int, rows: int = N) -> Tensor:
    source = generator(seed, "labels")
    return (
        torch.randint(2, (rows, C), generator=source)
        if form == "labels"
        else torch.randint(C, (rows,), generator=source)
    )


@every_form
@given(seed=seeds)
def test_the_logits_of_shares_have_them_as_probabilities(form: str, seed: int):
    shares = shares_of(form, seed)
    found = FORMS[form].probabilities(FORMS[form].logits_of(shares))
    torch.testing.assert_close(found, shares, rtol=1e-9, atol=1e-12)  # logarithms and exponentials of float64


@given(seed=seeds)
def test_one_label_follows_bayes_rule(seed: int):
    answers, before, after, logits = (
        OneLabel(),
        shares_of("one label", seed),
        shares_of("one label", seed + 1),
        logits_of(seed),
    )
    weighed = logits.softmax(1) * after / before
    found = answers.probabilities(logits + prior_shift(after, before, answers))
    torch.testing.assert_close(found, weighed / weighed.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)


@given(seed=seeds)
def test_each_of_several_labels_follows_bayes_rule(seed: int):
    answers, before, after, logits = (
        SeveralLabels(),
        shares_of("labels", seed),
        shares_of("labels", seed + 1),
        logits_of(seed),
    )
    has, lacks = logits.sigmoid() * after / before, (-logits).sigmoid() * (1 - after) / (1 - before)
    found = answers.probabilities(logits + prior_shift(after, before, answers))
    torch.testing.assert_close(found, has / (has + lacks), rtol=1e-9, atol=1e-12)


@every_form
@given(seed=seeds)
def test_equal_shares_change_nothing_and_a_way_back_undoes(form: str, seed: int):
    answers, here, there = FORMS[form], shares_of(form, seed), shares_of(form, seed + 1)
    assert torch.equal(prior_shift(here, here, answers), torch.zeros(C, dtype=torch.float64))
    assert torch.equal(prior_shift(there, here, answers), -prior_shift(here, there, answers))


@every_form
def test_shares_of_none_and_all_give_finite_logits(form: str):
    shares = torch.tensor([0.0, 1.0, 0.0, 1e-30, 0.5], dtype=torch.float64)
    whole = torch.tensor([0.0, 1.0, 0.5, 0.25, 1e-30], dtype=torch.float64)
    shift = prior_shift(shares, whole, FORMS[form])
    assert shift.isfinite().all()
    assert shift[:2].tolist() == [0.0, 0.0]  # nobody has the first, and all have the second, here as elsewhere
    assert shift[2] < 0 < shift[4]


@every_form
@given(seed=seeds, split=st.integers(1, N - 1))
def test_totals_count_labels_and_add_up(form: str, seed: int, split: int):
    answers, labels = FORMS[form], labels_of(form, seed)
    whole = LabelTotals.of(labels, C, answers)
    counted = labels.double().mean(0) if form == "labels" else torch.bincount(labels, minlength=C).double() / N
    torch.testing.assert_close(whole.shares(answers), counted, rtol=0, atol=1e-15)  # one rounding of each share
    parts = LabelTotals.of(labels[:split], C, answers) + LabelTotals.of(labels[split:], C, answers)
    assert torch.equal(parts.targets, whole.targets)
    assert parts.items == whole.items == N


@every_form
@given(seed=seeds)
def test_feature_statistics_say_the_shares(form: str, seed: int):
    answers, labels = FORMS[form], labels_of(form, seed)
    sums = HeadSums.of(torch.randn(N, 7, generator=generator(seed, "x")), labels, C, answers)
    found = LabelTotals(sums.moment[-1], sums.num_items)
    assert torch.equal(found.shares(answers), LabelTotals.of(labels, C, answers).shares(answers))


def test_tags_count_labelled_tokens_only():
    answers, labels = LabelOfTokens(), torch.tensor([[2, IGNORED, 0], [IGNORED, 2, 2]])
    items = answers.items(labels, labels)[1]
    assert LabelTotals.of(items, C, answers).shares(answers).tolist() == [0.25, 0.0, 0.75, 0.0, 0.0]


@every_form
@given(seed=seeds)
def test_smoothing_keeps_what_others_have_possible(form: str, seed: int):
    answers, whole = FORMS[form], shares_of(form, seed)
    labels = labels_of(form, seed, rows=3)
    own = LabelTotals.of(labels, C, answers)
    found, plain = smoothed_shares(own, whole, answers), own.shares(answers)
    torch.testing.assert_close(found, (3 * plain + SMOOTHING * whole) / (3 + SMOOTHING), rtol=1e-12, atol=0)
    assert ((found > 0) & (found < 1)).all()
    assert form == "labels" or abs(float(found.sum()) - 1) < 1e-12
    assert torch.equal(smoothed_shares(LabelTotals(torch.zeros(C).double(), 0.0), whole, answers), whole)
    many = LabelTotals(own.targets * 1000, own.items * 1000)
    assert (smoothed_shares(many, whole, answers) - plain).abs().max() < 1 / 3000


@pytest.mark.parametrize("form", ["one label", "labels"])
def test_the_estimate_finds_the_shares_of_a_stream(form: str):
    """Features of each label are normal around its own mean, so the right logits are known."""
    answers, rows, source = FORMS[form], 20_011, generator(3, "stream")
    whole = torch.full((C,), 0.5 if form == "labels" else 1 / C, dtype=torch.float64)
    there = torch.tensor([0.6, 0.25, 0.1, 0.05, 0.0], dtype=torch.float64)
    if form == "labels":
        has = torch.rand(rows, C, generator=source, dtype=torch.float64) < there
        x = has * 2 + torch.randn(rows, C, generator=source, dtype=torch.float64)
        logits = 2 * x - 2  # log N(x; 2, 1) - log N(x; 0, 1)
    else:
        label = torch.multinomial(there, rows, replacement=True, generator=source)
        noise = torch.randn(rows, C, generator=source, dtype=torch.float64)
        x = 2 * F.one_hot(label, C).double() + noise
        logits = 2 * x  # of equal shares, up to what all labels have in common
    found = estimated_shares(logits, whole, answers)
    # The shares of so many drawn rows are within .011 of those that they are drawn with in 99.8 % of draws of each
    # share; overlap of the labels costs some more. The draw itself is fixed.
    assert (found - there).abs().max() < 0.025, found


@every_form
@given(seed=seeds)
def test_a_further_step_changes_an_estimate_little_and_no_shares_are_likelier(form: str, seed: int):
    answers, whole, logits = FORMS[form], shares_of(form, seed), logits_of(seed)
    found = estimated_shares(logits, whole, answers)

    def likelihood(shares: Tensor) -> float:
        """Of the stream, and of the items that are added, up to a constant."""
        if form == "labels":
            has, lacks = shares / whole, (1 - shares) / (1 - whole)
            items = (logits.sigmoid() * has + (-logits).sigmoid() * lacks).log().sum()
            return float(items + SMOOTHING * (whole * shares.log() + (1 - whole) * (1 - shares).log()).sum())
        return float((logits.softmax(1) * shares / whole).sum(1).log().sum() + SMOOTHING * (whole * shares.log()).sum())

    best = likelihood(found)
    for other in (
        whole,
        shares_of(form, seed + 1),
        0.9 * found + 0.1 * whole,
        0.9 * found + 0.1 * shares_of(form, seed + 2),
    ):
        assert likelihood(other) <= best + 1e-4  # the estimate ends when its steps are short


@every_form
@given(seed=seeds, share=st.sampled_from([1e-3, 0.1, 0.5]))
def test_a_label_that_no_client_has_stays_as_the_model_gives_it(form: str, seed: int, share: float):
    """Its share was counted as a billionth, so whatever spoke for it was multiplied by up to a billion."""
    answers, logits, whole = FORMS[form], logits_of(seed), shares_of(form, seed).clone()
    logits[:, -1] -= 30.0  # the model never gives it
    whole[-1] = 0.0
    whole = whole if form == "labels" else whole / whole.sum()
    stated = torch.cat([(1 - share) * whole[:-1], torch.tensor([share])])
    for shares in (stated, estimated_shares(logits, whole, answers)):
        shifted = logits + prior_shift(shares, whole, answers)
        assert torch.equal(shifted[:, -1], logits[:, -1])
    estimate, without = estimated_shares(logits, whole, answers), estimated_shares(logits[:, :-1], whole[:-1], answers)
    assert estimate[-1] < 1e-6
    assert torch.allclose(estimate[:-1], without, atol=1e-5)  # of a thousand steps, which end near one another


@every_form
def test_no_items_say_nothing(form: str):
    whole = shares_of(form, 1)
    torch.testing.assert_close(estimated_shares(torch.zeros(0, C), whole, FORMS[form]), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("wrong", [None, 0.5, "0.5", [0.5, -0.1], [1.5], [1], [None], {"a": 0.5}])
def test_what_are_no_shares(wrong: object):
    assert not are_shares(wrong)
    assert are_shares([0.0, 0.25, 1.0])
