"""Turns the server state into bytes and back."""

import operator

import safetensors.torch
from safetensors import SafetensorError

from fftmoe.head import are_shares, usable
from fftmoe.records import ServerState, Tensors, inspect_message, pack

DEEPEST_STATE = 4  # nested brackets: a list of experts of a block of a client
TENSOR_GROUPS = ("tensors", "optimizer", "load", "average")  # of tensors in a server state


def pack_state(state: ServerState) -> bytes:
    """Return the server state as safetensors with a JSON header; equal states give equal bytes."""
    groups = {name: getattr(state, name) for name in TENSOR_GROUPS}
    flat = {f"{group}/{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
    known = {name: getattr(state, name) for name in ("temperature", "label_shares") if getattr(state, name) is not None}
    return pack({"round": state.round, "preferences": state.preferences, **known}, flat)


def unpack_state(data: bytes) -> ServerState:
    """Invert `pack_state`.

    Raises:
        ValueError: the bytes are not a server state.
    """
    _, header, _ = inspect_message(data, len(data), DEEPEST_STATE)
    try:
        preferences = {
            int(client): {int(block): tuple(map(operator.index, ids)) for block, ids in blocks.items()}
            for client, blocks in header["preferences"].items()
        }
        temperature = header.get("temperature")
        if temperature is not None and not usable(float(temperature)):
            raise TypeError(f"its temperature is {temperature!r}")
        shares = header.get("label_shares")
        if shares is not None and not are_shares(shares):
            raise TypeError("its label_shares are no shares")
        flat, round = safetensors.torch.load(data), operator.index(header["round"])
        groups: dict[str, Tensors] = {name: {} for name in TENSOR_GROUPS}
        for key, tensor in flat.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
    except (AttributeError, LookupError, TypeError, SafetensorError) as error:
        raise ValueError(f"it is not a server state: {type(error).__name__}: {error}") from error
    return ServerState(
        round=round,
        preferences=preferences,
        temperature=temperature,
        label_shares=None if shares is None else tuple(shares),
        **groups,
    )
