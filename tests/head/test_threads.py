"""What LAPACK factors has the same bytes for every number of threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fftmoe.exports.fit import TokenSums, low_rank
from fftmoe.head import HeadSums, few_tensors, solve_ridge
from fftmoe.methods.flexlora import split_product
from fftmoe.rng import generator
from fftmoe.threads import one_thread

N, F, C = 67, 383, 5  # large enough that LAPACK divides the work


def _rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=generator(3, "threads", count))


def _ridge() -> tuple[Tensor, ...]:
    weight, bias, _ = solve_ridge(HeadSums.of(_rows(N, F), torch.arange(N) % C, C))
    return weight, bias


def _statistics() -> tuple[Tensor, ...]:
    return tuple(few_tensors(_rows(N, F), torch.arange(N) % C, C).values())


def _product() -> tuple[Tensor, ...]:
    return split_product(_rows(61, F).double(), _rows(397, 61).double(), rank=7)


def _imitation() -> tuple[Tensor, ...]:
    sums = TokenSums(torch.zeros(F, F, dtype=torch.float64), torch.zeros(F, 211, dtype=torch.float64))
    sums.add(_rows(701, F), _rows(709, 211)[:701])
    return low_rank(sums, rank=7)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("factor", [_ridge, _statistics, _product, _imitation])
def test_the_bytes_are_those_of_one_thread(threads: Callable[[int], None], factor: Callable[[], tuple[Tensor, ...]]):
    threads(1)
    expected = factor()
    for count in (2, 3, 7):
        threads(count)
        assert all(map(torch.equal, factor(), expected)), count
        assert torch.get_num_threads() == count


def test_the_number_of_threads_comes_back_after_an_error(threads: Callable[[int], None]):
    threads(2)
    seen = []

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == 2
