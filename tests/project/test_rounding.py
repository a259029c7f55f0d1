"""The simulation of another processor's rounding, and the choice of tests that depend on arithmetic."""

from pathlib import Path

import pytest
import torch

from arithmetic import compares
from rounding import SIZE, OtherRounding


@pytest.fixture
def product(request: pytest.FixtureRequest) -> torch.Tensor:
    """The product of two random matrices as this processor rounds it; [7, 5]."""
    if request.config.getoption("--rounding") is not None:
        pytest.skip("another processor is simulated already")
    a, b = operands()
    return a @ b


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    return torch.randn(7, 11, generator=source), torch.randn(11, 5, generator=source)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_sum_differs_in_the_last_bits_and_is_the_same_again(product: torch.Tensor, seed: int):
    a, b = operands()
    with OtherRounding(seed):
        found, again, part = a @ b, a @ b, a[:3] @ b
    assert torch.equal(found, again)
    assert not torch.equal(found, product)
    assert not torch.equal(found[:3], part)  # another shape is another order of summation
    # Each operand is up to SIZE units of the last place away, and the product of matrices rounds as before.
    bound = (2 * SIZE + 11) * torch.finfo(torch.float32).eps * (a.abs() @ b.abs())
    assert ((found - product).abs() <= bound).all()


def test_gradients_are_rounded_differently_too(product: torch.Tensor):
    a, b = operands()
    a.requires_grad_()
    (plain,) = torch.autograd.grad((a @ b).square().sum(), a)
    with OtherRounding(1):
        (found,) = torch.autograd.grad((a @ b).square().sum(), a)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_short_numbers_keep_their_exact_sums(product: torch.Tensor):
    ones, halves = torch.ones(3, 7), torch.full((7, 2), 0.5)
    with OtherRounding(1):
        assert torch.equal(ones @ halves, torch.full((3, 2), 3.5))


def test_modules_that_compare_tensors_are_chosen(tmp_path: Path):
    assert compares(Path(__file__))
    (tmp_path / "test_words.py").write_text("def test_words():\n    assert 'a' != 'b'\n")
    assert not compares(tmp_path / "test_words.py")
