"""The closed-form head solves ridge regression, with the strength of least cross-validation error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closed_form_heads import C, F, N, drawn, gcv_by_hat_matrix, mean_eigenvalue, ridge_by_lstsq, seeds
from fftmoe.head import HeadSums, few_tensors, solve_ridge
from fftmoe.head.closed_form import STRENGTHS, cross_validation_error
from fftmoe.rng import generator


@given(seed=seeds, num_rows=st.integers(1, N), strength=st.sampled_from([1e-4, 1e-2, 0.3, 1.0, 100.0]))
def test_the_solution_is_ridge_regression(seed: int, num_rows: int, strength: float):
    x, labels = drawn(num_rows, seed)
    weight, bias, used = solve_ridge(HeadSums.of(x, labels, C), strength)
    expected_weight, expected_bias = ridge_by_lstsq(x, labels, strength)
    assert used == strength
    assert (weight.shape, bias.shape, weight.dtype) == ((C, F), (C,), torch.float32)
    torch.testing.assert_close(weight, expected_weight)
    torch.testing.assert_close(bias, expected_bias)


@given(seed=seeds, num_rows=st.integers(F + 4, N), strength=st.sampled_from(STRENGTHS))
def test_generalised_cross_validation_is_its_definition(seed: int, num_rows: int, strength: float):
    x, labels = drawn(num_rows, seed)
    sums = HeadSums.of(x, labels, C)
    eigenvalues, vectors = torch.linalg.eigh(sums.gram)
    rho, projected = strength * mean_eigenvalue(x), vectors.T @ sums.moment
    value = cross_validation_error(rho, eigenvalues, projected, float(sums.energy.sum()), num_rows)
    # The sums' form subtracts numbers as large as n, and divides by a (1 - tr H / n)^2 of at least (3/43)^2.
    assert value == pytest.approx(gcv_by_hat_matrix(x, labels, strength), rel=1e-8)


@given(seed=seeds, num_rows=st.integers(2 * F, N))
def test_the_strength_is_where_cross_validation_is_least(seed: int, num_rows: int):
    x, labels = drawn(num_rows, seed)
    chosen = solve_ridge(HeadSums.of(x, labels, C))[2]
    values = {strength: gcv_by_hat_matrix(x, labels, strength) for strength in STRENGTHS}
    # Far below the least eigenvalue the curve is flat, and strengths below the wire's rounding may be left out.
    assert values[chosen] <= min(values.values()) * (1 + 1e-4)
    weight, bias, _ = solve_ridge(HeadSums.of(x, labels, C), chosen)
    torch.testing.assert_close((weight, bias), ridge_by_lstsq(x, labels, chosen))


def test_noise_is_shrunk_and_what_features_explain_is_not():
    x, labels = drawn(997, 1)
    chance = torch.randint(0, C, (997,), generator=generator(2))
    (explained, _, little), (_, _, much) = (solve_ridge(HeadSums.of(x, y, C)) for y in (labels, chance))
    assert STRENGTHS[0] < little < much < STRENGTHS[-1]
    assert float((x @ explained.T).argmax(1).eq(labels).double().mean()) > 0.5  # 5 classes


@pytest.mark.parametrize("num_rows", [1, 2, F - 1, F, F + 1])
def test_a_problem_with_as_many_features_as_examples_is_solved(num_rows: int):
    x, labels = drawn(num_rows, 3)
    weight, bias, strength = solve_ridge(HeadSums.of(x, labels, C))
    assert strength in STRENGTHS
    torch.testing.assert_close((weight, bias), ridge_by_lstsq(x, labels, strength))
    assert torch.isfinite(weight).all()


@pytest.mark.parametrize("common", [0.0, 30.0])
def test_rounding_on_the_wire_does_not_make_a_saturated_fit_look_perfect(common: float):
    """With about as many features as examples, a residual of rounding errors may come out negative: the least of all.

    Labels are chance, so that nothing is to be learnt. `common` is what all rows share, as a transformer's do.
    """
    size, worst = 41, 0.0
    for num_rows in range(size - 2, size + 3):
        for seed in range(20):
            source = generator(seed, "saturated", num_rows)
            x, mean = (torch.randn(n, size, generator=source) for n in (num_rows + 7, 1))
            x = x + common * mean
            labels = torch.randint(0, C, (num_rows,), generator=source)
            parts = [HeadSums.of(x[:num_rows][client::3], labels[client::3], C) for client in range(3)]
            few = (few_tensors(x[:num_rows][client::3], labels[client::3], C) for client in range(3))
            forms = ((part.to_tensors() for part in parts), few)
            wire = HeadSums.total(map(HeadSums.from_tensors, forms[seed % 2]))
            (weight, bias, _), (wire_weight, wire_bias, _) = map(solve_ridge, (HeadSums.total(parts), wire))
            change = x @ (wire_weight - weight).T + (wire_bias - bias)
            worst = max(worst, float(change.abs().max()))
    # Logits are of size 1; the shrunk gram passes the rounding on enlarged (measured: to 1e-5).
    assert worst < 1e-3


def test_a_class_without_examples_gets_zero():
    x, labels = drawn(N, 5)
    weight, bias, _ = solve_ridge(HeadSums.of(x, labels.clamp_max(C - 2), C))
    assert torch.equal(weight[C - 1], torch.zeros(F))
    assert float(bias[C - 1]) == 0.0
    assert (weight[: C - 1] != 0).all()
