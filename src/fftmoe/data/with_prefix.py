"""Holds examples together with their hidden states after the frozen first blocks, which are kept in a file.

Shape letters: B batch, S sequence, d model.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fftmoe.data.examples import Examples, Rows
from fftmoe.data.preferences import Preferences


def cached_states(examples: Examples | None) -> "WithPrefix | None":
    """Return the examples, or the answers of pairs, with their states; None where no states are cached."""
    own = examples.answers if isinstance(examples, Preferences) else examples
    return own if isinstance(own, WithPrefix) else None


@dataclass(frozen=True)
class WithPrefix:
    """Holds N examples whose batches include "prefix_states" (see `backbones.prefix`).

    The file is mapped into memory at the first batch, and processes that map it share its pages. Pickling keeps the
    file's path and not its content.

    Attributes:
        examples: the N examples.
        path: [tokens, dim] in native byte order, without a header.
        block: the block that the states enter.
        dim: d.
        starts: int64 [N]; example i has the rows `starts[i]:starts[i] + num_states[i]` of the file.
        num_states: int64 [N], at least 1 each.
        dtype: the type of the numbers in the file.
    """

    examples: Examples
    path: Path
    block: int
    dim: int
    starts: Tensor
    num_states: Tensor
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> Tensor:
        """Return the labels of the examples."""
        return self.examples.labels

    @property
    def lengths(self) -> Tensor:
        """Return the lengths of the examples, so that batches are the same with the states and without."""
        return self.examples.lengths

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Return the batch of the examples, and `prefix_states`, `dtype` [B, S, d], zero on padding."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        num_states = self.num_states[rows]
        columns = torch.arange(int(num_states.max()))
        mask_BS = columns < num_states[:, None]
        # Padding positions read the example's first state, a valid place, before they are overwritten.
        source_BS = self.starts[rows][:, None] + columns * mask_BS
        states_BSd = self._states.index_select(0, source_BS.flatten()).view(*source_BS.shape, self.dim)
        if not mask_BS.all():
            states_BSd.masked_fill_(~mask_BS[:, :, None], 0.0)
        return {**self.examples.batch(rows), "prefix_states": states_BSd}

    def select(self, rows: Rows, /) -> "WithPrefix":
        """Return the examples at `rows`, in that order; their states stay in the same file."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        own = {"starts": self.starts[rows], "num_states": self.num_states[rows]}
        return replace(self, examples=self.examples.select(rows), **own)

    @cached_property
    def _states(self) -> Tensor:
        size = self.path.stat().st_size // self.dtype.itemsize
        return torch.from_file(str(self.path), shared=False, size=size, dtype=self.dtype).view(-1, self.dim)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_states"}
