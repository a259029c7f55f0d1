"""Makes seeded random generators. Every random choice names its own stream by a seed and a path; no state is global."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: str | int) -> int:
    """Derive a 63-bit seed for a stream, e.g. `derive(0, "cohort", 3)`; different paths give independent streams."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """Make a torch generator on the CPU for the stream that `seed` and `path` name."""
    return torch.Generator().manual_seed(derive(seed, *path))


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Make a numpy generator for the stream that `seed` and `path` name."""
    return np.random.default_rng(derive(seed, *path))
