"""The server's state as bytes."""

from fftmoe.records import ServerState, Tensors, pack, unpack

GROUPS = ("tensors", "optimizer", "load", "average")  # of tensors in a server state


def pack_state(state: ServerState) -> bytes:
    """The server state as safetensors with a JSON header; equal states give equal bytes."""
    groups = {name: getattr(state, name) for name in GROUPS}
    flat = {f"{group}/{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
    return pack({"round": state.round, "preferences": state.preferences}, flat)


def unpack_state(data: bytes) -> ServerState:
    """Inverse of `pack_state`."""
    header, flat = unpack(data)
    groups: dict[str, Tensors] = {name: {} for name in GROUPS}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    preferences = {
        int(client): {int(block): tuple(ids) for block, ids in blocks.items()}
        for client, blocks in header["preferences"].items()
    }
    return ServerState(round=header["round"], preferences=preferences, **groups)
