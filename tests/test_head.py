"""How logits become a loss: values worked by hand."""

import math

import pytest
import torch

from fftmoe.errors import InputError
from fftmoe.head import make_head


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
