"""Fewer bytes for an upload, with error feedback: what rounding leaves out is added to the client's next upload.

So nothing is lost for good: the uploads of all rounds sum to the true changes, less what the client still holds
(Seide et al., 2014; Karimireddy et al., arXiv 1901.09847). What is held back stays on the client.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fftmoe.records import ClientUpdate, Tensors
from fftmoe.records.codec import decode, encode

FEEDBACK, EXPERTS = "feedback/", ":experts"


def split_state(kept: Tensors) -> tuple[Tensors, Tensors]:
    """What a client keeps, as the method's part and the feedback of its uploads."""
    method = {name: t for name, t in kept.items() if not name.startswith(FEEDBACK)}
    return method, {name: t for name, t in kept.items() if name.startswith(FEEDBACK)}


def compress(update: ClientUpdate, feedback: Tensors, kind: str) -> tuple[ClientUpdate, Tensors]:
    """The update with its deltas in the numbers of `kind`, and the feedback after it.

    Args:
        feedback: what earlier uploads left out, by `feedback/{name}`; empty the first time. Of a block's tensors it
            holds the rows of the experts that the client ever sent, whose ids are beside them.
    """
    if kind == "float32":
        return update, feedback
    sent: Tensors = {}
    left = dict(feedback)
    for name, delta in update.tensors.items():
        ids = _expert_ids(update, name)
        wanted = delta + _held(left, name, delta, ids)
        parts = encode({name: wanted}, kind)
        sent |= parts
        left |= _merged(left, name, wanted - decode(parts)[name], ids)
    return replace(update, tensors=sent), left


def _expert_ids(update: ClientUpdate, name: str) -> tuple[int, ...] | None:
    """The experts that the rows of a tensor `blocks.{i}.{part}` belong to; None for any other."""
    prefix, _, rest = name.partition(".")
    return update.experts[int(rest.split(".")[0])] if prefix == "blocks" else None


def _rows(feedback: Tensors, name: str) -> dict[int, Tensor]:
    key = FEEDBACK + name
    return dict(zip(feedback[key + EXPERTS].tolist(), feedback[key], strict=True)) if key in feedback else {}


def _held(feedback: Tensors, name: str, delta: Tensor, ids: tuple[int, ...] | None) -> Tensor:
    """What is held back of this tensor, shaped as the delta; zero of experts that were never sent."""
    if ids is None:
        return feedback.get(FEEDBACK + name, torch.zeros_like(delta))
    if not ids:
        return torch.zeros_like(delta)
    rows = _rows(feedback, name)
    return torch.stack([rows.get(m, torch.zeros_like(row)) for m, row in zip(ids, delta, strict=True)])


def _merged(feedback: Tensors, name: str, left: Tensor, ids: tuple[int, ...] | None) -> Tensors:
    """The feedback of this tensor with these rows in the place of the old ones."""
    key = FEEDBACK + name
    if ids is None:
        return {key: left}
    rows = _rows(feedback, name) | dict(zip(ids, left, strict=True))
    if not rows:
        return {}
    order = sorted(rows)
    return {key: torch.stack([rows[m] for m in order]), key + EXPERTS: torch.tensor(order)}
