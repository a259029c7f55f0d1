"""What a solved head is fitted to: several labels, numbers, and the labels of tokens, each as its definition says."""

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.client.sums import groups_of
from fftmoe.data import IGNORED
from fftmoe.head import (
    Answers,
    HeadSums,
    LabelAnswers,
    LeastSquares,
    OneLabel,
    SquaredDistance,
    best_temperature,
    bounded_total,
    few_tensors,
    score_sums,
    solve_ridge,
    sum_shapes,
)
from fftmoe.head.closed_form import STRENGTHS, solved_with_leverage
from fftmoe.records import names
from fftmoe.rng import generator
from fftmoe.tasks import FITTED, LabelOfTokens, ScaledNumbers, SeveralLabels, make_task

N, DIM, C, S = 61, 7, 3, 5
SCALES = ((2.0, 0.5), (-3.0, 7.0), (0.0, 1.0))
FORMS: dict[str, Answers] = {"labels": SeveralLabels(), "numbers": ScaledNumbers(SCALES), "one label": OneLabel()}
seeds = st.integers(0, 2**31)
every_form = pytest.mark.parametrize("form", FORMS)


def drawn(form: str, seed: int, rows: int = N) -> tuple[Tensor, Tensor]:
    """Features, and answers that they partly determine, in the form of a task."""
    x = torch.randn(rows, DIM, generator=generator(seed, "x"))
    found = x[:, :C] + 0.5 * torch.randn(rows, C, generator=generator(seed, "noise"))
    if form == "labels":
        return x, (found > 0.3).float()
    return x, found if form == "numbers" else found.argmax(1)


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


def ridge(x: Tensor, y: Tensor, rho: float) -> Tensor:
    """The solution of least squares over the rows and over sqrt(rho) times the unit vectors, [DIM + 1, C]."""
    x = with_one(x)
    below = rho**0.5 * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.lstsq(torch.cat([x, below]), torch.cat([y, torch.zeros(len(below), C).double()])).solution


@every_form
@given(seed=seeds)
def test_the_head_is_ridge_regression_on_the_targets(form: str, seed: int):
    (x, labels), answers = drawn(form, seed), FORMS[form]
    sums = HeadSums.of(x, labels, C, answers)
    unit = float(torch.linalg.eigvalsh(sums.gram).mean())
    weight, bias, strength = solve_ridge(sums)
    expected = ridge(x, answers.targets(labels, C), strength * unit)
    # The weights are float32, and the condition of the Gram matrix is that of 61 rows of 8 numbers, below 100.
    torch.testing.assert_close(torch.cat([weight, bias[:, None]], 1).T.double(), expected, rtol=1e-4, atol=1e-5)


@every_form
def test_the_strength_is_the_one_of_the_least_cross_validation_error(form: str):
    (x, labels), answers = drawn(form, 3), FORMS[form]
    sums, y = HeadSums.of(x, labels, C, answers), answers.targets(labels, C)
    unit = float(torch.linalg.eigvalsh(sums.gram).mean())

    def error(strength: float) -> float:
        one = with_one(x)
        hat = one @ torch.linalg.inv(one.T @ one + strength * unit * torch.eye(DIM + 1).double()) @ one.T
        return float(((y - hat @ y).square().sum() / N) / (1 - hat.trace() / N) ** 2)

    assert error(solve_ridge(sums)[2]) == pytest.approx(min(map(error, STRENGTHS)), rel=1e-6)


@every_form
@given(seed=seeds, cut=st.integers(1, N - 1))
def test_sums_add_up_and_are_the_same_after_the_wire(form: str, seed: int, cut: int):
    (x, labels), answers = drawn(form, seed), FORMS[form]
    whole = HeadSums.of(x, labels, C, answers)
    parts = [HeadSums.of(x[own], labels[own], C, answers) for own in (slice(cut), slice(cut, None))]
    sent = [HeadSums.from_tensors(part.to_tensors()) for part in parts]
    few = HeadSums.from_tensors(few_tensors(x, labels, C, answers))
    for found in (HeadSums.total(parts), HeadSums.total(sent), few):
        for name in ("gram", "moment", "energy"):
            # Sums of 61 products are rounded to float32, and may cancel.
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-4)
    shapes = sum_shapes(DIM, C, N, answers)
    shapes.pop(names.STATISTICS_SCORES, None)
    assert {name: tuple(tensor.shape) for name, tensor in whole.to_tensors().items()} == shapes


def test_what_is_sent_beside_the_products_follows_from_the_answers():
    sent = {form: set(sum_shapes(DIM, C, None, answers)) for form, answers in FORMS.items()}
    products = {names.STATISTICS_GRAM, names.STATISTICS_MOMENT}
    assert sent["one label"] == {*products, names.STATISTICS_SCORES}
    assert sent["labels"] == {*products, names.STATISTICS_SCORES, names.STATISTICS_SQUARES}
    assert sent["numbers"] == {*products, names.STATISTICS_SQUARES}
    assert names.STATISTICS_FACTOR in sum_shapes(67, C, 2, SeveralLabels())
    assert names.STATISTICS_FACTOR not in sum_shapes(67, C, 2, LabelOfTokens())  # nobody knows how many tokens


def test_numbers_of_any_size_count_no_more_than_those_of_the_median_client():
    x, y = drawn("numbers", 5)
    parts = [HeadSums.of(x, y * size, C, ScaledNumbers()) for size in (1.0, 1.0, 1e6)]
    honest = HeadSums.of(x, y, C, ScaledNumbers())
    assert float(bounded_total(parts).energy.sum()) <= 3 * float(honest.size) * (1 + 1e-12)


@every_form
def test_the_solved_head_is_where_the_loss_is_least(form: str):
    (x, labels), answers = drawn(form, 7), FORMS[form]
    weight, bias, _ = solve_ridge(HeadSums.of(x, labels, C, answers), STRENGTHS[0])
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    loss = LeastSquares(answers=answers).loss(x.double() @ weight.T + bias, labels)
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    # float32 weights of about 1, and a ridge of 1e-8 times the eigenvalues.
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-4


@every_form
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_examples(form: str):
    (x, labels), answers = drawn(form, 11), FORMS[form]
    loss = LeastSquares(answers=answers)
    each, number = loss.by_example(x[:, :C], labels)
    expected = 10 * (x[:, :C] - answers.targets(labels, C)).square().sum(1)
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)
    assert number.tolist() == [1] * N
    assert float(loss.loss(x[:, :C], labels)) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert loss.items(labels) == N


# Several labels


def test_a_label_is_answered_where_it_is_more_likely_than_not():
    answers = SeveralLabels()
    has = torch.tensor([[1.0, 0.0, 1.0]])
    assert answers.targets(has, 3).tolist() == [[1.0, -1.0, 1.0]]
    statistics = make_task("multi-label-classification").statistics(answers.targets(has, 3), {"labels": has})
    assert statistics[0, -2] == 1.0, "targets are the right answers"


def test_the_temperature_of_several_labels_is_that_of_heads_that_never_saw_the_example():
    (x, labels), answers = drawn("labels", 13, rows=211), SeveralLabels()
    sums = HeadSums.of(x, labels, C, answers)
    head, leverage = solved_with_leverage(sums)
    outputs = (x @ head[names.HEAD_WEIGHT].T + head[names.HEAD_BIAS]).double()
    rho = solve_ridge(sums)[2] * float(torch.linalg.eigvalsh(sums.gram).mean())
    y, every = answers.targets(labels, C), torch.arange(len(x))
    truly = torch.cat([with_one(x[row : row + 1]) @ ridge(x[every != row], y[every != row], rho) for row in every])
    finest = [0.01 * 1.02**step for step in range(300)]
    best = min(finest, key=lambda t: float(F.binary_cross_entropy_with_logits(truly / t, labels.double())))
    found = best_temperature(score_sums(outputs, labels, answers), leverage, len(x), answers.choices(C))
    assert found == pytest.approx(best, rel=0.1)  # one leverage for all, and sixteen temperatures


def test_right_answers_of_few_examples_are_not_certain():
    """As for one label: n right answers show that errors are rarer than about one in 2 n, and no more."""
    labels = torch.ones(43, C)
    outputs = SeveralLabels().targets(labels, C)
    temperature = best_temperature(score_sums(outputs, labels, SeveralLabels()), 0.0, 43, 2)
    assert float(torch.sigmoid(torch.tensor(1 / temperature))) == pytest.approx(1 - 1 / 86, abs=1e-3)


# Tokens


@given(seed=seeds)
def test_only_labelled_tokens_are_fitted(seed: int):
    features = torch.randn(11, S, DIM, generator=generator(seed, "x"))
    labels = torch.randint(0, C, (11, S), generator=generator(seed, "y"))
    labelled = torch.rand(11, S, generator=generator(seed, "mask")) < 0.6
    labelled[0, 0] = True
    marked = torch.where(labelled, labels, IGNORED)
    rows, found = LabelOfTokens().items(features, marked)
    assert torch.equal(rows, features[labelled])
    assert torch.equal(found, labels[labelled])
    one = HeadSums.of(rows, found, C, LabelOfTokens())
    assert torch.equal(one.moment, HeadSums.of(features[labelled], labels[labelled], C).moment)
    loss, outputs = SquaredDistance(answers=LabelOfTokens()), features[..., :C]
    assert loss.items(marked) == int(labelled.sum())
    expected = LeastSquares().loss(outputs[labelled], labels[labelled])
    torch.testing.assert_close(loss.loss(outputs, marked), expected)


def test_a_batch_without_a_labelled_token_has_no_loss():
    outputs = torch.ones(2, S, C, requires_grad=True)
    loss = SquaredDistance(answers=LabelOfTokens()).loss(outputs, torch.full((2, S), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert outputs.grad is not None
    assert not outputs.grad.any()


# Which examples are in which sums


def test_an_example_is_part_of_the_sums_of_its_labels():
    tags = torch.tensor([[0, 2, IGNORED], [1, 1, 1]])
    assert LabelOfTokens().groups(tags, 3).tolist() == [[True, False, True], [False, True, False]]
    assert OneLabel().groups(torch.tensor([2, 0]), 3).tolist() == [[False, False, True], [True, False, False]]
    has = torch.tensor([[1.0, 0.0]])
    assert SeveralLabels().groups(has, 2).tolist() == [[True, False, False, True]]
    assert ScaledNumbers().groups(torch.ones(4, 2), 2).shape == (4, 0)


def test_the_groups_of_one_label_need_no_inputs():
    """Inputs may be images, which would be read once more for every request."""

    class WithoutInputs:
        labels = torch.tensor([2, 0, 1, 2])

    found = groups_of(cast(Any, WithoutInputs()), np.array([0, 2, 3]), 3, OneLabel())
    assert found.argmax(1).tolist() == [2, 1, 2]


def test_every_task_with_a_head_says_what_its_head_is_fitted_to():
    for task, make in FITTED.items():
        answers: Any = make()
        assert isinstance(answers, LabelAnswers) == (task != "regression")
        assert answers.one_each == (not make_task(task).by_token)
        assert answers.exclusive == make_task(task).exclusive
