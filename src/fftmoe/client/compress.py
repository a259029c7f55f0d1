"""Makes uploads smaller, with error feedback: a client adds to each upload what rounding left out of earlier ones.

Nothing is lost for good: over all rounds the uploads sum to the exact deltas, up to the feedback that the client still
holds (Seide et al., 2014; Karimireddy et al., arXiv 1901.09847). The feedback never leaves the client.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fftmoe.records import ClientUpdate, Tensors, names
from fftmoe.records.codec import decode, encode


def split_state(kept: Tensors) -> tuple[Tensors, Tensors]:
    """Return a client's state in two parts: the state of the method, and the feedback of the uploads."""
    method = {name: t for name, t in kept.items() if not names.is_feedback(name)}
    return method, {name: t for name, t in kept.items() if names.is_feedback(name)}


def compress(update: ClientUpdate, feedback: Tensors, kind: str) -> tuple[ClientUpdate, Tensors]:
    """Return the update with its deltas in the number format `kind`, and the new feedback.

    Args:
        feedback: what earlier uploads left out, by `names.feedback`; empty in the client's first round. For tensors
            of experts it has one row for every expert that the client ever sent; `names.feedback_experts` has their
            ids.
        kind: see `fftmoe.records.codec`; "float32" leaves everything out of the feedback.
    """
    if kind == "float32":
        return update, feedback
    sent: Tensors = {}
    left = dict(feedback)
    for name, delta in update.tensors.items():
        ids = _experts_of_rows(update, name)
        exact = delta + _feedback_for(left, name, delta, ids)
        parts = encode({name: exact}, kind)
        sent |= parts
        left |= _new_feedback(left, name, exact - decode(parts)[name], ids)
    return replace(update, tensors=sent), left


def _experts_of_rows(update: ClientUpdate, name: str) -> tuple[int, ...] | None:
    """Return the experts to which the rows of a tensor belong; None for a tensor without experts."""
    block = names.block_of(name)
    return None if block is None else update.experts[block]


def _feedback_rows(feedback: Tensors, name: str) -> dict[int, Tensor]:
    """Return the feedback of each expert."""
    key = names.feedback(name)
    if key not in feedback:
        return {}
    return dict(zip(feedback[names.feedback_experts(name)].tolist(), feedback[key], strict=True))


def _feedback_for(feedback: Tensors, name: str, delta: Tensor, ids: tuple[int, ...] | None) -> Tensor:
    """Return the feedback of a tensor in the shape of its delta; zero for experts that were never sent."""
    if ids is None:
        return feedback.get(names.feedback(name), torch.zeros_like(delta))
    if not ids:
        return torch.zeros_like(delta)
    rows = _feedback_rows(feedback, name)
    return torch.stack([rows.get(m, torch.zeros_like(row)) for m, row in zip(ids, delta, strict=True)])


def _new_feedback(feedback: Tensors, name: str, left: Tensor, ids: tuple[int, ...] | None) -> Tensors:
    """Return the entries of a tensor after its upload left out `left`; other experts keep their rows."""
    if ids is None:
        return {names.feedback(name): left}
    rows = _feedback_rows(feedback, name) | dict(zip(ids, left, strict=True))
    if not rows:
        return {}
    order = sorted(rows)
    return {
        names.feedback(name): torch.stack([rows[m] for m in order]),
        names.feedback_experts(name): torch.tensor(order),
    }
