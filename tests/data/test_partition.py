from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.data import Partition, make_partition
from fftmoe.data.ragged import Ragged
from fftmoe.errors import InputError

KINDS: dict[str, dict[str, Any]] = {
    "iid": {},
    "dirichlet": {"alpha": 0.7},
    "shards": {"shards_per_client": 3},
    "bernoulli-dirichlet": {"alpha": 2.0, "holder_fraction": 0.5},
}
LABELS = np.random.default_rng(0).integers(7, size=509)


def partition(kind: str, labels: np.ndarray = LABELS, num_clients: int | None = 11, seed: int = 0, **changes: Any):
    return make_partition(kind, labels=labels, num_clients=num_clients, seed=seed, **{**KINDS[kind], **changes})


def assert_disjoint_cover(part: Partition, num_examples: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(part.indices)), np.arange(num_examples))
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in part.indices)
    assert len(part) == len(part.names) == len(part.indices)


def same(a: Partition, b: Partition) -> bool:
    return a.names == b.names and all(np.array_equal(x, y) for x, y in zip(a.indices, b.indices, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(60, 131), st.integers(1, 5), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1))
def test_disjoint_cover_fixed_by_the_seed(
    kind: str, num_clients: int, num: int, num_labels: int, seed: int, state: int
):
    labels = np.random.default_rng(num).integers(num_labels, size=num)
    first = partition(kind, labels, num_clients, seed, min_examples=1)
    assert_disjoint_cover(first, num)
    saved = np.random.get_state()  # noqa: NPY002
    np.random.seed(state)  # noqa: NPY002
    assert same(partition(kind, labels, num_clients, seed, min_examples=1), first)
    np.random.set_state(saved)  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_is_unchanged_and_seeds_differ(kind: str):
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    first = partition(kind)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[arg-type, index]  # noqa: NPY002
    assert not same(first, partition(kind, seed=1))
    assert first.names == tuple(map(str, range(11)))


@given(st.integers(1, 13), st.integers(26, 99))
@settings(deadline=None)
def test_iid_sizes_differ_by_one_at_most(num_clients: int, num: int):
    sizes = partition("iid", np.zeros(num), num_clients).sizes
    assert sizes.max() - sizes.min() <= 1


def test_iid_does_not_follow_the_order_of_the_rows():
    labels = np.repeat([0, 1], 500)
    assert partition("iid", labels, 2).label_distribution(labels, 2).min() > 0.4


@given(st.integers(1, 3), st.integers(100, 149))
@settings(deadline=None)
def test_shards_hold_few_labels_and_lose_nothing(shards_per_client: int, num: int):
    labels = np.arange(num) % 5
    part = partition("shards", labels, 7, shards_per_client=shards_per_client)
    assert_disjoint_cover(part, num)
    assert part.sizes.max() - part.sizes.min() <= shards_per_client
    # A shard is shorter than a class, so it reaches into two labels at most.
    held = (part.label_distribution(labels, 5) > 0).sum(axis=1)
    assert held.max() <= 2 * shards_per_client


def mean_total_variation(part: Partition, labels: np.ndarray, num_labels: int) -> float:
    overall = np.bincount(labels, minlength=num_labels) / len(labels)
    return float(np.abs(part.label_distribution(labels, num_labels) - overall).sum(axis=1).mean() / 2)


@pytest.mark.parametrize("kind", ["dirichlet", "bernoulli-dirichlet"])
def test_skew_grows_as_alpha_falls(kind: str):
    labels = np.arange(3000) % 10
    # Every client holds every class, so that only alpha makes the difference.
    extra = {"holder_fraction": 1.0} if kind == "bernoulli-dirichlet" else {}
    skew = [
        np.mean(
            [
                mean_total_variation(partition(kind, labels, 10, seed, alpha=alpha, **extra), labels, 10)
                for seed in range(5)
            ]
        )
        for alpha in (0.1, 1.0, 10.0, 1000.0)
    ]
    assert skew[0] > skew[1] + 0.1 > skew[2] + 0.2
    assert skew[2] > skew[3]
    assert skew[3] < 0.1


def test_dirichlet_examples_of_a_class_are_drawn_and_not_cut_in_order():
    labels = np.zeros(1000, dtype=np.int64)
    part = partition("dirichlet", labels, 2, alpha=1000.0)
    assert part.indices[0].mean() == pytest.approx(500, abs=50)


def test_bernoulli_dirichlet_number_of_holders():
    labels = np.arange(20_000) % 40
    part = partition("bernoulli-dirichlet", labels, 20, alpha=100.0, holder_fraction=0.25)
    held = part.label_distribution(labels, 40) > 0
    # 800 independent draws with probability 1/4: the share's standard deviation is 0.015.
    assert held.mean() == pytest.approx(0.25, abs=0.06)
    of_all = partition("bernoulli-dirichlet", labels, 20, alpha=100.0, holder_fraction=1.0)
    assert (of_all.label_distribution(labels, 40) > 0).all()


def test_bernoulli_dirichlet_gives_every_class_a_holder():
    labels = np.arange(600) % 60
    part = partition("bernoulli-dirichlet", labels, 3, alpha=1.0, holder_fraction=0.01)
    assert_disjoint_cover(part, 600)
    held = (part.label_distribution(labels, 60) > 0).sum(axis=0)
    assert held.min() == 1
    assert held.mean() < 1.2


def test_label_distribution():
    part = Partition(Ragged.grouped(np.array([0, 1, 0, 1, 1]), 2), ("a", "b"))
    distribution = part.label_distribution(np.array([0, 2, 1, 2, 0]), 4)
    np.testing.assert_allclose(distribution, [[0.5, 0.5, 0, 0], [1 / 3, 0, 2 / 3, 0]])
    assert part.sizes.tolist() == [2, 3]


@given(st.integers(1, 11), st.integers(1, 5), st.data())
def test_label_shares_are_each_clients_own_count(num_clients: int, num_labels: int, data: Any):
    labels = np.random.default_rng(num_clients).integers(num_labels, size=59)
    part = partition("iid", labels, num_clients)
    of_all = part.label_distribution(labels, num_labels)
    counts = [np.bincount(labels[rows], minlength=num_labels) / len(rows) for rows in part.indices]
    assert np.array_equal(of_all, np.stack(counts))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, num_clients), st.integers(0, num_clients))))
    some = part.label_distribution(labels, num_labels, range(start, stop))
    assert np.array_equal(some, of_all[start:stop])


@given(st.lists(st.integers(-3, 12), min_size=1), st.lists(st.text("abc", min_size=1), min_size=1))
@settings(max_examples=30, deadline=None)
def test_natural_groups_are_exact(numbers: list[int], texts: list[str]):
    for groups, order in ((list(map(str, numbers)), sorted(set(numbers))), (texts, sorted(set(texts)))):
        part = natural(groups)
        assert_disjoint_cover(part, len(groups))
        assert part.names == tuple(map(str, order))
        for name, rows in zip(part.names, part.indices, strict=True):
            assert {groups[row] for row in rows} == {name}


def natural(groups: list[str], **changes: Any) -> Partition:
    return make_partition(
        "natural", labels=np.zeros(len(groups)), seed=0, groups=groups, **{"num_clients": None, **changes}
    )


def test_natural_says_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]):
    assert natural(["b", "a", "b"], num_clients=2).names == ("a", "b")
    assert capfd.readouterr() == ("", "")


def test_natural_errors():
    with pytest.raises(InputError, match=r"num_clients=3, but the column of partition\.by has 2 distinct values"):
        natural(["a", "b"], num_clients=3)
    with pytest.raises(
        InputError, match=r"client b has 1 example, fewer than partition\.min_examples=2; name a coarser"
    ):
        natural(["a", "b", "a"], min_examples=2)


def test_unknown_kind_and_parameters():
    with pytest.raises(InputError, match=r"partition\.kind='dirichelt' is not known; did you mean 'dirichlet'\?"):
        make_partition("dirichelt", labels=LABELS, num_clients=3, seed=0)
    with pytest.raises(InputError, match=r"kind=natural needs partition\.by"):
        make_partition("natural", labels=LABELS, num_clients=None, seed=0)
    with pytest.raises(InputError, match=r"kind=iid does not use partition\.alpha; remove it"):
        partition("iid", alpha=0.1)
    for kind, parameters in KINDS.items():
        with pytest.raises(InputError, match=rf"kind={kind} needs partition\.num_clients"):
            partition(kind, num_clients=None)
        for name in parameters:
            with pytest.raises(InputError, match=rf"kind={kind} needs partition\.{name}"):
                make_partition(kind, labels=LABELS, num_clients=3, seed=0, **{**parameters, name: None})


def test_more_clients_than_examples():
    with pytest.raises(InputError, match=r"num_clients=300 with at least 2 examples each needs 600 .* there are 509"):
        partition("iid", num_clients=300)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("dirichlet", "raise partition.alpha"), ("bernoulli-dirichlet", "raise partition.holder_fraction")],
)
def test_a_client_that_stays_too_small(kind: str, remedy: str):
    with pytest.raises(
        InputError,
        match=rf"client \d+ has \d+ examples? after 100 draws, fewer than partition\.min_examples=50; {remedy}",
    ):
        partition(kind, LABELS, 10, alpha=0.01, min_examples=50)


def test_more_shards_than_examples_leaves_a_client_small():
    with pytest.raises(InputError, match=r"fewer than partition\.min_examples=2; lower partition\.num_clients"):
        partition("shards", np.arange(6), 3, shards_per_client=50)
