"""Holds arrays of different lengths in one array: the examples of very many clients without an object for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[np.ndarray]):
    """Is a read-only sequence of C int64 arrays; `ragged[c]` is a view.

    Attributes:
        flat: int64 [N], the arrays one after the other.
        offsets: int64 [C + 1]: array c is `flat[offsets[c]:offsets[c + 1]]`.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def grouped(cls, owners: np.ndarray, num_owners: int) -> "Ragged":
        """Return the examples of each of `num_owners`, ascending; example i belongs to `owners[i]`, integers [N]."""
        sizes = np.bincount(owners, minlength=num_owners)
        return cls(owners.argsort(kind="stable"), np.concatenate([[0], sizes.cumsum()]))

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> "Ragged":
        """Return the same arrays, one after the other."""
        sizes = np.array([len(array) for array in arrays], dtype=np.int64)
        return cls(np.concatenate([np.empty(0, dtype=np.int64), *arrays]), np.concatenate([[0], sizes.cumsum()]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[np.ndarray, ...]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | tuple[np.ndarray, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        i = range(len(self))[index]  # which counts from the end, and raises, as a tuple does
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Return the length of each array, int64 [C]."""
        return np.diff(self.offsets)
