"""Plans and updates on the wire: one safetensors message with a JSON header. Equal values give equal bytes."""

import dataclasses
import json
import reprlib
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import TensorSpec, serialize

from fftmoe.records.messages import Budget, ClientPlan, ClientUpdate, Tensors, Training
from fftmoe.strict import strict_json

DEEPEST = 3  # nested brackets in the JSON of a message


def pack(header: Mapping[str, object], tensors: Tensors) -> bytes:
    """Serialise a JSON header and tensors."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # must outlive the call below
    # The same as safetensors.torch.save without its search for tensors that share memory, which takes half the time
    # of a message. Here, two names of one tensor are simply written twice.
    specs = {
        name: TensorSpec(
            dtype=str(t.dtype).removeprefix("torch."), shape=t.shape, data_ptr=t.data_ptr(), data_len=t.nbytes
        )
        for name, t in flat.items()
    }
    return bytes(serialize(specs, metadata={"header": text}))


def unpack(message: bytes) -> tuple[dict, Tensors]:
    """Inverse of `pack`."""
    return unpack_header(message), safetensors.torch.load(message)


def unpack_header(message: bytes) -> dict:
    """The JSON header without the tensors."""
    length = int.from_bytes(message[:8], "little")
    return json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["header"])


def inspect_message(message: bytes, most: int, deepest: int = DEEPEST) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What an untrusted message declares. No tensor is created, and the caller has to check every value.

    Args:
        most: largest size of its JSON in bytes.
        deepest: largest depth of nested brackets in its JSON.

    Returns:
        the declaration of each tensor by name, the header, and the number of bytes after them.

    Raises:
        ValueError: `pack` cannot have made this message.
    """
    length = int.from_bytes(message[:8], "little")
    if len(message) < 8 + length or not length:
        raise ValueError(f"it has {len(message)} bytes, and says that {length} of them are a header")
    if length > most:
        raise ValueError(f"it has a header of {length} bytes, and at most {most} were expected")
    declared = strict_json(message[8 : 8 + length].decode(errors="replace"), deepest)
    metadata = declared.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.keys() != {"header"} or not isinstance(metadata["header"], str):
        raise ValueError(f"its metadata is {reprlib.repr(metadata)}, and a header was expected")
    return declared, strict_json(metadata["header"], deepest), len(message) - 8 - length


def pack_plan(plan: ClientPlan, tensors: Tensors) -> bytes:
    """The message from server to client: the plan and the tensors that it needs."""
    header = {**vars(plan), "budget": vars(plan.budget), "training": vars(plan.training)}
    return pack(header, tensors)


def unpack_plan(message: bytes) -> tuple[ClientPlan, Tensors]:
    """Inverse of `pack_plan`."""
    header, tensors = unpack(message)
    budget = header.pop("budget")
    budget["blocks"] = tuple(budget["blocks"])
    plan = ClientPlan(
        budget=Budget(**budget),
        training=Training(**header.pop("training")),
        experts=_by_block(header.pop("experts")),
        **header,
    )
    return plan, tensors


def pack_update(update: ClientUpdate) -> bytes:
    """The message from client to server."""
    header = {f.name: getattr(update, f.name) for f in dataclasses.fields(update) if f.name != "tensors"}
    return pack(header, update.tensors)


def unpack_update(message: bytes) -> ClientUpdate:
    """Inverse of `pack_update`."""
    return make_update(*unpack(message))


def make_update(header: Mapping[str, Any], tensors: Tensors) -> ClientUpdate:
    """The update that this header and these tensors describe."""
    tables = {name: _by_block(header[name]) for name in ("experts", "shares", "preferences")}
    return ClientUpdate(tensors=tensors, **{**header, **tables})


def _by_block(table: dict[str, list]) -> dict:
    """A table with integer keys and tuples, which JSON writes as strings and lists."""
    return {int(block): tuple(values) for block, values in table.items()}
