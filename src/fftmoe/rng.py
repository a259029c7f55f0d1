"""Randomness is an argument: every random choice names its stream by a seed and a path, never by global state."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the stream `path`, e.g. `derive(0, "cohort", 3)`; unlike paths give independent streams."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU torch generator for the stream `path`."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A numpy generator for the stream `path`."""
    return np.random.default_rng(derive(seed, *path))
