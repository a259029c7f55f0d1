"""Feature statistics: those of clients add up to those of all data, and a client sends the smaller of two forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from closed_form_heads import LIFTED, NUM_LABELS, C, F, N, drawn, examples, moe_model, seeds
from fftmoe.client.sums import head_sums
from fftmoe.head import HeadSums, few_tensors, sum_shapes
from fftmoe.records import (
    ClientUpdate,
    pack_update,
    unpack_update,
)
from fftmoe.rng import generator


def sums_of(num_rows: int, seed: int, num_features: int = F) -> HeadSums:
    return HeadSums.of(*drawn(num_rows, seed, num_features), C)


@given(owners=st.lists(st.integers(0, 4), min_size=1, max_size=N), seed=seeds, skewed=st.booleans())
def test_sums_of_the_clients_are_those_of_the_union_whatever_the_partition(owners: list[int], seed: int, skewed: bool):
    source = generator(seed, "exact")
    # Multiples of 1/8, of which float64 sums are exact, so that nothing but the law is tested.
    x = torch.randint(-40, 41, (len(owners), F), generator=source).float() / 8
    labels = torch.randint(0, C, (len(owners),), generator=source)
    owner = labels if skewed else torch.tensor(owners)  # skewed: one class per client
    parts = [HeadSums.of(x[owner == client], labels[owner == client], C) for client in owner.unique()]
    total, whole = HeadSums.total(parts), HeadSums.of(x, labels, C)
    assert torch.equal(total.gram, whole.gram)
    assert torch.equal(total.moment, whole.moment)
    assert torch.equal(total.moment[-1], torch.bincount(labels, minlength=C).double())
    assert total.num_items == len(owners) == sum(part.num_items for part in parts)


def test_sums_match_an_example_computed_by_hand():
    sums = HeadSums.of(torch.tensor([[2.0, 3.0], [5.0, 7.0]]), torch.tensor([1, 0]), 3)
    assert sums.gram.tolist() == [[29.0, 41.0, 7.0], [41.0, 58.0, 10.0], [7.0, 10.0, 2.0]]
    assert sums.moment.tolist() == [[5.0, 2.0, 0.0], [7.0, 3.0, 0.0], [1.0, 1.0, 0.0]]


@given(seed=seeds, num_rows=st.integers(1, N))
def test_the_wire_carries_the_upper_triangle_in_float32(seed: int, num_rows: int):
    sums = sums_of(num_rows, seed)
    tensors = unpack_update(pack_update(ClientUpdate(0, 3, num_rows, sums.to_tensors()))).tensors
    assert {name: t.dtype for name, t in tensors.items()} == dict.fromkeys(("sums.gram", "sums.moment"), torch.float32)
    assert sum(t.numel() for t in tensors.values()) == (F + 1) * (F + 2) // 2 + (F + 1) * C
    back = HeadSums.from_tensors(tensors)
    assert torch.equal(back.gram, back.gram.T)
    # Half a unit in the last of float32's 24 bits.
    torch.testing.assert_close(back.gram, sums.gram, rtol=2**-24, atol=0)
    torch.testing.assert_close(back.moment, sums.moment, rtol=2**-24, atol=0)
    assert back.num_items == num_rows


@given(seed=seeds, num_rows=st.integers(1, (F + 1) // 2), common=st.sampled_from([0.0, 1.0, 100.0]))
def test_few_examples_are_sent_as_as_many_rows(seed: int, num_rows: int, common: float):
    """The rows' products are the Gram matrix, and their sums stay accurate where features cancel."""
    x, labels = drawn(num_rows, seed)
    x = x - x.mean(0) + common * (torch.arange(F) % 2)
    sums, sent = HeadSums.of(x, labels, C), few_tensors(x, labels, C)
    shapes = {name: shape for name, shape in sum_shapes(F, C, num_rows).items() if name != "sums.scores"}
    assert {name: tuple(t.shape) for name, t in sent.items()} == shapes
    assert {t.dtype for t in sent.values()} == {torch.float32}
    tensors = unpack_update(pack_update(ClientUpdate(0, 3, num_rows, sent))).tensors
    back = HeadSums.from_tensors(tensors)
    # Either factor of a product is rounded to 24 bits: relative to the columns' lengths, not to what is left of them.
    lengths = sums.gram.diagonal().sqrt()
    assert ((back.gram - sums.gram).abs() <= 2**-22 * lengths * lengths[:, None] + 1e-30).all()
    assert torch.equal(back.moment, sums.moment.float().double())
    # Symmetric up to the order of N additions in float64, of which each costs at most a few units in the last place.
    assert ((back.gram - back.gram.T).abs() <= 8 * num_rows * 2**-52 * lengths * lengths[:, None]).all()
    torch.testing.assert_close(back.gram[-1], sums.gram[-1], rtol=2**-22, atol=1e-12)
    assert back.num_items == pytest.approx(num_rows, rel=2**-22)


@given(seed=seeds, num_rows=st.integers(2, (F + 1) // 2))
def test_the_rows_that_are_sent_reveal_no_more_than_the_gram_matrix(seed: int, num_rows: int):
    """They follow from it up to signs: Cholesky's factor of its leading part determines all columns."""
    x, labels = drawn(num_rows, seed)
    gram = HeadSums.of(x, labels, C).gram.flip(0, 1)  # the column of ones is the first to be factored
    lower = torch.linalg.cholesky(gram[:num_rows, :num_rows])
    rows = torch.linalg.solve_triangular(lower, gram[:num_rows], upper=False)
    sent = few_tensors(x, labels, C)["sums.factor"].double().flip(1)
    signs = sent.diagonal().sign()[:, None]
    scale = float(gram.diagonal().max().sqrt())
    condition = float(torch.linalg.cond(lower))
    torch.testing.assert_close(signs * sent, rows, rtol=0, atol=(2**-23 + 1e-14 * condition) * scale)


def test_rows_of_few_examples_are_never_larger_than_the_gram_matrix():
    for num_features in (1, 2, 36, 37, 1024):
        sizes = [
            sum(math.prod(shape) for shape in sum_shapes(num_features, C, n).values()) for n in range(1, num_features)
        ]
        whole = sum(math.prod(shape) for shape in sum_shapes(num_features, C, None).values())
        assert sizes == sorted(sizes)
        assert all(size <= whole for size in sizes)


def test_a_client_sends_the_smaller_form_unless_it_hides_its_number_of_examples(backbone_folder: Path):
    model = moe_model(backbone_folder, LIFTED)
    few, many = np.arange((LIFTED + 1) // 2), np.arange((LIFTED + 1) // 2 + 1)
    for rows, revealed, name in (
        (few, True, "sums.factor"),
        (many, True, "sums.gram"),
        (few, False, "sums.gram"),
    ):
        sent = head_sums(model, examples(), rows, NUM_LABELS, reveal_number=revealed)
        assert set(sent) == {name, "sums.moment", "sums.scores"}
        assert {n: tuple(t.shape) for n, t in sent.items()} == sum_shapes(
            LIFTED, NUM_LABELS, len(rows) if revealed else None
        )
    sums, whole = (
        HeadSums.from_tensors(head_sums(model, examples(), few, NUM_LABELS, reveal_number=revealed))
        for revealed in (True, False)
    )
    torch.testing.assert_close(sums.gram, whole.gram, rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.moment, whole.moment)
