"""Simulates the rounding of another processor: `pytest --rounding SEED` runs any test with other last bits.

Processors and libraries add the terms of a sum in unlike orders, with or without fused multiply-add. By the usual
error model (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3) such a sum is the exact sum of terms
that differ in the last bits. So here every sum, product of matrices and normalisation gets inputs that differ in the
last bits. The difference depends on the seed, the operation and the shapes of its inputs, as the choice of a kernel
does: the same computation gives the same bits again, and a computation in another shape does not.

Numbers of at most 8 significant bits stay as they are, because sums of few of them are exact on every processor.
Processes that a test starts, and graphs that it traces, are out of reach; `one_rounding` marks the tests that compare
these with this process.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# The operations of PyTorch that add numbers up, without namespace and overload. In inference mode, `linear` and its
# like come whole, and otherwise as the operations that they are made of.
SUMS = {
    "_log_softmax",
    "_log_softmax_backward_data",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
    "_softmax",
    "_softmax_backward_data",
    "addmm",
    "addmv",
    "baddbmm",
    "bmm",
    "conv2d",
    "convolution",
    "convolution_backward",
    "dot",
    "layer_norm",
    "linalg_vector_norm",
    "linear",
    "log_softmax",
    "logsumexp",
    "matmul",
    "mean",
    "mm",
    "mv",
    "native_group_norm",
    "native_layer_norm",
    "native_layer_norm_backward",
    "scaled_dot_product_attention",
    "softmax",
    "sum",
    "var_mean",
}
SIZE = 2.0  # the largest difference, in units of the last place


class OtherRounding(TorchDispatchMode):
    """While it is on, the sums of this thread round as they might on another processor.

    Args:
        seed: of the processor that is simulated.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Compute `func`, of changed inputs if it adds numbers up."""
        name = func._schema.name.split("::")[1]
        if name in SUMS:
            shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
            key = hashlib.blake2b(repr((self.seed, name, shapes)).encode(), digest_size=7).digest()
            source = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            args = tuple(in_last_bits(a, source) if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def in_last_bits(x: Tensor, source: torch.Generator) -> Tensor:
    """The tensor with its last bits changed at random; float32 and float64 only."""
    if x.dtype not in (torch.float32, torch.float64):
        return x
    share = (2 * torch.rand(x.shape, generator=source, dtype=x.dtype) - 1) * SIZE * torch.finfo(x.dtype).eps
    return torch.where(x == x.bfloat16().to(x.dtype), x, x + x * share)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--rounding`."""
    parser.addoption("--rounding", type=int, metavar="SEED", help="simulate the rounding of another processor")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, visibly, what the simulation does not reach."""
    if config.getoption("--rounding") is not None:
        for item in items:
            if marker := item.get_closest_marker("one_rounding"):
                item.add_marker(pytest.mark.skip(reason=f"rounding is not simulated in {marker.args[0]}"))


@pytest.fixture(scope="session", autouse=True)
def other_rounding(request: pytest.FixtureRequest) -> Iterator[None]:
    """Simulate another processor for the whole session, if that was asked for."""
    seed = request.config.getoption("--rounding")
    if seed is None:
        yield
        return
    with OtherRounding(seed):
        yield
