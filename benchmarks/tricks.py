"""Our optimisations as switches: from a careful but simple implementation to fftmoe's own."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import Examples


@dataclass(frozen=True)
class Tricks:
    """The optimisations that are on; the default is the naive stack, a frozen backbone without any optimisation.

    Attributes:
        dynamic: pad to the longest text of a batch; else to the longest allowed.
        like_length: texts of like length share a batch.
        fast_compute: the adapter's `auto`; else a loop over the experts.
        fused: AdamW in one operation; else torch's default.
        pruned: `backward(inputs=parameters)`; else `backward()`.
        cached: what the blocks below the adapters compute comes from a file.
        bfloat16: multiply in half the bits.
        input_gradients: no trick but a habit that costs: the embeddings require a gradient, as PEFT makes them for
            gradient checkpointing.
    """

    dynamic: bool = False
    like_length: bool = False
    fast_compute: bool = False
    fused: bool = False
    pruned: bool = False
    cached: bool = False
    bfloat16: bool = False
    input_gradients: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the matrix products."""
        return torch.bfloat16 if self.bfloat16 else torch.float32


FULL = Tricks(*[True] * 7)

STEPS = {
    "naive": (),
    "+ dynamic padding": ("dynamic",),
    "+ batches of like length": ("like_length",),
    "+ fast compute, fused AdamW, pruned backward": ("fast_compute", "fused", "pruned"),
    "+ frozen prefix cached": ("cached",),
    "+ bfloat16": ("bfloat16",),
}


def cumulative(bfloat16: bool) -> dict[str, Tricks]:
    """Return rows, each with the optimisations of the rows before it."""
    rows, tricks = {}, Tricks()
    for name, fields in STEPS.items():
        if bfloat16 or "bfloat16" not in fields:
            tricks = replace(tricks, **dict.fromkeys(fields, True))
            rows[name] = tricks
    return rows


def left_out(full: Tricks) -> dict[str, Tricks]:
    """Return the full stack with one optimisation switched off, for each optimisation."""
    names = [name for name in vars(full) if getattr(full, name)]
    return {f"without {name}": replace(full, **{name: False}) for name in names}


@dataclass(frozen=True)
class PaddedTo:
    """Examples whose batches are all of one length."""

    examples: Examples
    length: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> Tensor:
        """Return the labels of the examples."""
        return self.examples.labels

    @property
    def lengths(self) -> Tensor:
        """Return the lengths of the examples, without padding."""
        return self.examples.lengths

    def batch(self, rows: Any, /) -> dict[str, Tensor]:
        """Return the examples' own batch, padded further."""
        batch = self.examples.batch(rows)
        missing = self.length - batch["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            batch[name] = F.pad(batch[name], (0, missing))
        if "prefix_states" in batch:
            batch["prefix_states"] = F.pad(batch["prefix_states"], (0, 0, 0, missing))
        return batch

    def select(self, rows: Any, /) -> "PaddedTo":
        """Return the examples at `rows`, in that order."""
        return replace(self, examples=self.examples.select(rows))
