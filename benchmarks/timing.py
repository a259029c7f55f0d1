"""Comparable timings on a machine with other work: rounds over all variants, in a new order each time.

On a CPU the time is the processor time of this process on one thread, so waiting for other processes does not count.
Other processes still use caches and memory bandwidth, but this affects all variants alike.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Seconds = dict[str, list[float]]


def synchronized(device: torch.device) -> float:
    """Return the time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, hopeless: float = float("inf")
) -> Seconds:
    """Seconds of each variant in every round, after one round that does not count.

    Args:
        hopeless: a variant that took this many times the fastest in the first round keeps that time and runs no more.
    """
    order = random.Random(0)

    def sample(name: str) -> float:
        start = synchronized(device)
        variants[name]()
        return synchronized(device) - start

    # Twice, as the first call also allocates and chooses kernels.
    first = {name: min(sample(name), sample(name)) for name in variants}
    fastest = min(first.values())
    seconds: Seconds = {name: [] for name in variants}
    running = [name for name in variants if first[name] <= hopeless * fastest]
    for _ in range(rounds):
        # In a fixed order each variant would always find the caches as the same neighbour left them.
        for name in order.sample(running, len(running)):
            seconds[name].append(sample(name))
    return {name: taken or [first[name]] for name, taken in seconds.items()}


def ratio(ours: Sequence[float], base: Sequence[float], blocks: int) -> tuple[float, float, float]:
    """Return the ratio of the medians over all rounds, and its range over blocks of successive rounds."""

    def medians(start: int, stop: int) -> float:
        return statistics.median(ours[start:stop]) / statistics.median(base[start:stop])

    size = max(1, min(len(ours), len(base)) // blocks)
    parts = [medians(start, start + size) for start in range(0, min(len(ours), len(base)) - size + 1, size)]
    return statistics.median(ours) / statistics.median(base), min(parts), max(parts)


def square_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A matrix product large enough to show the device's peak, and its floating-point operations."""
    size = 1024 if device.type == "cpu" else 8192
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=g).to(device, dtype) for _ in range(2))
    return lambda: a @ b, 2 * size**3


def fast_dtypes(device: torch.device) -> list[torch.dtype]:
    """float32, and bfloat16 where the device multiplies it faster; others emulate it."""
    products = {str(dtype): square_product(device, dtype)[0] for dtype in (torch.float32, torch.bfloat16)}
    seconds = interleave(products, 10, device)
    faster = ratio(seconds["torch.float32"], seconds["torch.bfloat16"], blocks=1)[0]
    return [torch.float32, torch.bfloat16] if faster > 1.2 else [torch.float32]


def use_device(name: str) -> torch.device:
    """Return the device of that name; on a CPU, set torch to one thread."""
    device = torch.device(name)
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the device for the results file, where it complements `machine()`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
