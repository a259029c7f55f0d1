"""How logits become a loss: values worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.errors import InputError
from fftmoe.head import HeadSums, LeastSquares, make_head, solve_ridge
from fftmoe.rng import generator


def test_averaged_is_log_c_for_equal_logits():
    loss = make_head("averaged").loss(torch.zeros(3, 5), torch.tensor([0, 4, 2]))
    assert float(loss) == pytest.approx(math.log(5))
    assert make_head("averaged").init_bias(5) == 0.0


def test_one_vs_all_sums_over_classes_and_averages_over_the_batch():
    # sigmoid(0) = 1/2, so each of the 5 classes costs log 2 for every example.
    loss = make_head("one-vs-all").loss(torch.zeros(3, 5), torch.tensor([0, 4, 2]))
    assert float(loss) == pytest.approx(5 * math.log(2))
    # One example, logits (log 3, 0), label 0: -log(3/4) for its class, -log(1/2) for the other.
    loss = make_head("one-vs-all").loss(torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(2))


@pytest.mark.parametrize("num_labels", [2, 3, 77])
def test_an_untrained_one_vs_all_row_predicts_the_prior(num_labels: int):
    bias = make_head("one-vs-all").init_bias(num_labels)
    assert 1 / (1 + math.exp(-bias)) == pytest.approx(1 / num_labels)


def test_one_vs_all_rows_do_not_see_one_another():
    logits = torch.zeros(1, 3, requires_grad=True)
    other = torch.tensor([[0.0, 9.0, -9.0]], requires_grad=True)
    for scores in (logits, other):
        make_head("one-vs-all").loss(scores, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert other.grad is not None
    assert logits.grad[0, 0] == other.grad[0, 0]


def test_unknown_heads_and_single_labels_are_refused():
    with pytest.raises(InputError, match="did you mean 'averaged'"):
        make_head("average")
    with pytest.raises(InputError, match="at least 2 labels"):
        make_head("one-vs-all").init_bias(1)


# Least squares


def test_least_squares_is_the_squared_distance_to_the_label():
    # Example 1: (0.5, 0.25, 0) to (1, 0, 0) is 0.25 + 0.0625. Example 2: (0, 0, 3) to (0, 0, 1) is 4.
    logits, labels = torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 2])
    assert float(LeastSquares(2.0).loss(logits, labels)) == pytest.approx(2 * (0.3125 + 4) / 2)
    assert float(LeastSquares(1.0).loss(logits, labels)) == pytest.approx((0.3125 + 4) / 2)
    assert float(LeastSquares().loss(F.one_hot(labels, 3).float(), labels)) == 0.0


def test_a_solved_heads_logits_are_probabilities_already():
    found = make_head("closed-form").probabilities(torch.tensor([[0.6, -0.2, 0.2], [-1.0, -2.0, -3.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.0, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
    # Of many classes: where softmax would say 0.11 for a text that is surely of the first.
    sure = F.one_hot(torch.tensor(0), 24).float()
    assert float(make_head("closed-form").probabilities(sure)[0]) == pytest.approx(1.0)


@given(st.integers(0, 2**31))
def test_least_squares_gives_each_class_its_share(seed: int):
    """Features say nothing, or only name a group: the solution is the share of each label there."""
    source = generator(seed, "shares")
    labels, group = torch.randint(3, (97,), generator=source), torch.randint(2, (97, 1), generator=source).float()
    weight, bias, _ = solve_ridge(HeadSums.of(group, labels, 3), strength=1e-9)
    for value in group.unique():
        expected = torch.bincount(labels[group[:, 0] == value], minlength=3) / (group == value).sum()
        found = make_head("closed-form").probabilities(weight @ value[None] + bias)
        torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["averaged", "one-vs-all"])
def test_a_trained_heads_probabilities_are_a_softmax(kind: str):
    logits = torch.tensor([[0.0, math.log(3.0)]])
    torch.testing.assert_close(make_head(kind).probabilities(logits), torch.tensor([[0.25, 0.75]]))


def test_a_closed_form_head_is_trained_with_by_least_squares_and_starts_without_bias():
    head = make_head("closed-form")
    assert isinstance(head, LeastSquares)
    assert head.init_bias(5) == 0.0
    assert make_head("averaged").loss(torch.zeros(1, 2), torch.tensor([0])) != head.loss(
        torch.zeros(1, 2), torch.tensor([0])
    )


N, DIM, C = 43, 7, 5


def linear_loss(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a linear head, and its gradients."""
    weight, bias = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    loss = LeastSquares().loss(x @ weight.T + bias, labels)
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    return loss.detach(), weight.grad, bias.grad


@given(st.integers(0, 2**31))
def test_the_closed_form_is_where_the_losss_gradient_vanishes(seed: int):
    source = generator(seed, "rows")
    x, labels = torch.randn(N, DIM, generator=source), torch.randint(0, C, (N,), generator=source)
    weight, bias, _ = solve_ridge(HeadSums.of(x, labels, C), strength=1e-12)  # as good as without any
    loss, *gradients = linear_loss(x, labels, weight, bias)
    # A weight is rounded by 2^-24 of its size, about 0.1, and the gradient's Hessian is 20 times the gram's mean, ~1.
    assert max(float(g.abs().max()) for g in gradients) < 1e-5
    # Away from the solution the gradient does not vanish, and the loss is larger.
    moved, *gradients = linear_loss(x, labels, weight + 0.1, bias)
    assert max(float(g.abs().max()) for g in gradients) > 0.1
    assert moved > loss


def test_a_client_of_one_class_stops_pushing_once_its_label_is_met():
    """Where cross-entropy still raises its class and lowers all others, whatever the logits."""
    labels, met = torch.full((3,), 2), F.one_hot(torch.full((3,), 2), C).float()
    pushes = {}
    for kind in ("closed-form", "averaged"):
        logits = met.clone().requires_grad_()
        make_head(kind).loss(logits, labels).backward()
        pushes[kind] = logits.grad
    assert torch.equal(pushes["closed-form"], torch.zeros(3, C))
    assert (pushes["averaged"][:, 2] < 0).all()
    assert (pushes["averaged"][:, [0, 1, 3, 4]] > 0).all()
