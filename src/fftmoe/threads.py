"""Computes on one thread, so that results do not depend on how many a machine has."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread within the context, as a worker process does; then on as many as before.

    LAPACK divides the work of eigenvalues, QR and singular values among its threads, and adds in another order for each
    number of them, so that the last bits of the result would depend on `OMP_NUM_THREADS`. With the instructions of an
    older processor MKL does the same in products of float64 matrices. For the matrices of a head, which have some
    hundred rows, more threads save little.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
