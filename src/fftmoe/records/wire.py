"""Serialises plans and updates as safetensors messages with a JSON header; equal values give equal bytes."""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import TensorSpec, serialize

from fftmoe.records.messages import Budget, ClientPlan, ClientUpdate, Tensors, Training
from fftmoe.shown import count_of
from fftmoe.strict import exact_json, strict_json

MESSAGE_DEPTH = 3  # largest depth of nested brackets in the JSON of a message


def pack(header: Mapping[str, object], tensors: Tensors) -> bytes:
    """Serialise a JSON header and tensors to one message."""
    text = exact_json(header, sort_keys=True, compact=True)
    flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # must outlive the call below
    # This equals safetensors.torch.save without its search for tensors that share memory, which takes half of the
    # time. A tensor with two names is written twice.
    specs = {
        name: TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."), shape=t.shape, data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in flat.items()
    }
    return bytes(serialize(specs, metadata={"header": text}))


def unpack(message: bytes) -> tuple[dict, Tensors]:
    """Read the header and the tensors of a message that `pack` made."""
    return unpack_header(message), safetensors.torch.load(message)


def unpack_header(message: bytes) -> dict:
    """Read the JSON header of a message without its tensors."""
    length = int.from_bytes(message[:8], "little")
    return json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["header"])


def inspect_message(
    message: bytes, most: int, deepest: int = MESSAGE_DEPTH
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Read the declarations of an untrusted message without creating a tensor; the caller must check every value.

    Args:
        message: the received bytes.
        most: largest size of the message's JSON in bytes.
        deepest: largest depth of nested brackets in the JSON.

    Returns:
        The declaration of each tensor by name, the header, and the number of bytes after them.

    Raises:
        ValueError: `pack` cannot have made this message.
    """
    length = int.from_bytes(message[:8], "little")
    if len(message) < 8 + length or not length:
        raise ValueError(f"it has {count_of(len(message), 'byte')}, and says that {length:,} of them are a header")
    if length > most:
        raise ValueError(f"it has a header of {count_of(length, 'byte')}; at most {most:,} are allowed")
    declared = strict_json(message[8 : 8 + length].decode(errors="replace"), deepest)
    metadata = declared.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"header"} or not isinstance(metadata["header"], str):
        raise ValueError(f"its metadata is {reprlib.repr(metadata)}; expected a header")
    return declared, strict_json(metadata["header"], deepest), len(message) - 8 - length


def pack_plan(plan: ClientPlan, tensors: Tensors) -> bytes:
    """Serialise the message from server to client: the plan and the tensors that it needs."""
    header = {**vars(plan), "budget": vars(plan.budget), "training": training_values(plan.training)}
    return pack(header, tensors)


def training_values(training: Training) -> dict[str, Any]:
    """Return the settings of a client's training as a plan states them; a limit on gradients and factors of the rates
    are left out where there are none.

    So a plan without them has the bytes that it had before there could be any.
    """
    values = dict(vars(training))
    if training.clip_gradients is None:
        del values["clip_gradients"]
    if not training.rate_factors:
        del values["rate_factors"]
    return values


def unpack_plan(message: bytes) -> tuple[ClientPlan, Tensors]:
    """Read a message that `pack_plan` made."""
    header, tensors = unpack(message)
    budget = header.pop("budget")
    budget["blocks"] = tuple(budget["blocks"])
    training = header.pop("training")
    plan = ClientPlan(
        budget=Budget(**budget),
        training=Training(**{**training, "rate_factors": tuple(training.get("rate_factors", ()))}),
        experts=_with_block_keys(header.pop("experts")),
        **header,
    )
    return plan, tensors


def pack_update(update: ClientUpdate) -> bytes:
    """Serialise the message from client to server."""
    header = {f.name: getattr(update, f.name) for f in dataclasses.fields(update) if f.name != "tensors"}
    return pack(header, update.tensors)


def unpack_update(message: bytes) -> ClientUpdate:
    """Read a message that `pack_update` made."""
    return make_update(*unpack(message))


def make_update(header: Mapping[str, Any], tensors: Tensors) -> ClientUpdate:
    """Make the update that this header and these tensors describe."""
    tables = {name: _with_block_keys(header[name]) for name in ("experts", "shares", "preferences")}
    return ClientUpdate(tensors=tensors, **{**header, **tables})


def _with_block_keys(table: dict[str, list]) -> dict:
    """Restore integer keys and tuples, which JSON stores as strings and lists."""
    return {int(block): tuple(values) for block, values in table.items()}
