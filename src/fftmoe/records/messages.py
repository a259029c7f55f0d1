"""The values that pass between server and client, and their form on the wire (safetensors with a JSON header).

Both sides meet only here. Tensors are float32 on the CPU at this boundary. Names of tensors:
`blocks.{i}.router` [M, d], `blocks.{i}.up` and `blocks.{i}.down` [M, h, d], `shared.{i}.up` and `shared.{i}.down`
[S, d], `head.{name}`; of the LoRA methods `lora.{path}.A` [r, d_in] and `lora.{path}.B` [d_out, r].
"""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import TensorSpec, serialize
from torch import Tensor

from fftmoe.strict import strict_json

Tensors = dict[str, Tensor]
Experts = dict[int, tuple[int, ...]]  # block index -> expert ids

DEEPEST = 3  # brackets within brackets, in the JSON of a message
NOTHING = "0" * 16  # where nobody asked what is named


@dataclass(frozen=True)
class Budget:
    """What one tier of clients can afford: `top_k` experts a token, `experts` resident ones, in `blocks`.

    `rank` is the LoRA rank that costs as much, for the methods that train LoRA instead of experts.
    """

    name: str
    top_k: int
    experts: int
    blocks: tuple[int, ...]
    rank: int = 0


@dataclass(frozen=True)
class Training:
    """How a client trains. Exactly one of `local_epochs` and `local_steps` is set."""

    batch_size: int
    learning_rate: float  # of the adapter, AdamW
    head_learning_rate: float
    head_optimizer: str = "sgd"  # or "adamw"
    train_head: bool = True  # False: clients use the head as they got it
    local_epochs: int | None = None
    local_steps: int | None = None
    group_by_length: bool = True  # texts of like length share a batch
    weight_decay: float = 0.0
    proximal: float = 0.0  # mu in (mu / 2) * |theta - theta_t|^2
    upload: str = "float32"  # the numbers of the deltas on the wire: also "bfloat16", "int8"
    private: bool = False  # what is sent tells nothing but sums of what it was made of
    clip_norm: float | None = None  # of all that a private client sends together; None: any
    example_clip: float | None = None  # of one example's gradient, over all parameters; None: plain gradients
    example_noise: float = 0.0  # standard deviation of the noise on a sum of such gradients, over `example_clip`


@dataclass(frozen=True)
class ClientPlan:
    """What the server asks of one client in one round; `experts` are its resident experts, ascending.

    `task` is to "train"; to train "alone" (nothing is kept, and its own model is measured); or to send the "sums"
    from which a closed-form head is solved, on the model that it gets. `base` names the global model of that moment.
    """

    round: int
    client_id: int
    seed: int
    budget: Budget
    experts: Experts
    training: Training
    task: str = "train"
    base: str = NOTHING

    @property
    def concealed(self) -> bool:
        """Whether the answer is to be told from others' of the same plan by nothing but numbers to be summed."""
        return self.training.private and self.task != "alone"


@dataclass(frozen=True)
class RoundPlan:
    """One round: the cohort's plans in `client_id` order."""

    round: int
    clients: tuple[ClientPlan, ...]


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back.

    Attributes:
        tensors: deltas (client - global). Tensors of a block hold rows of the trained experts alone.
        experts: the experts it trained (those that received a token and a gradient), per block, ascending.
        shares: float32, beside `experts`: the share of the client's routed slots that went to each.
        preferences: every expert the client knows, best first (mean gate probability on its data).
        made_on: see `made_on`.
    """

    round: int
    client_id: int
    num_examples: int
    tensors: Tensors
    experts: Experts = field(default_factory=dict)
    shares: dict[int, tuple[float, ...]] = field(default_factory=dict)
    preferences: Experts = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    made_on: str = NOTHING


@dataclass(frozen=True)
class ServerState:
    """Everything the server carries from one round to the next.

    Attributes:
        tensors: the global model (all M experts of every adapted block, and the head).
        optimizer: moments of the server optimiser, shaped as the tensors they belong to.
        load: `blocks.{i}` -> float64 [M], moving average of the share of routed slots per expert; sums to 1.
        preferences: client_id -> what that client last reported.
        average: the moving average of `tensors` over the rounds (`server/average.py`); empty where none is kept.
    """

    round: int
    tensors: Tensors
    optimizer: Tensors = field(default_factory=dict)
    load: Tensors = field(default_factory=dict)
    preferences: dict[int, Experts] = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)


def digest(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """Sixteen hexadecimal digits that name these tensors, whose order is of no account, and a text."""
    found = hashlib.sha256(more.encode())
    for name, t in sorted(tensors.items()):
        found.update(f"\n{name} {t.dtype} {[*t.shape]}\n".encode())
        whole: Any = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # numpy has no bfloat16
        found.update(whole)
    return found.hexdigest()[:16]


def made_on(backbone: str, base: str) -> str:
    """What an update was made on, in sixteen digits: the client's own backbone, and what its plan calls `base`."""
    return hashlib.sha256(f"{backbone} {base}".encode()).hexdigest()[:16]


def pack(header: Mapping[str, object], tensors: Tensors) -> bytes:
    """Serialise a JSON header and tensors; equal values give equal bytes."""
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}  # must outlive the call below
    # What safetensors.torch.save does, without its search for tensors that share memory, which takes half the time of
    # a message: here two names of one tensor are simply written twice.
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
    """The JSON header alone."""
    length = int.from_bytes(message[:8], "little")
    return json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["header"])


def inspect_message(message: bytes, most: int, deepest: int = DEEPEST) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What a message says of itself, read as one reads a stranger's: nothing is believed, and no tensor is made.

    Args:
        most: bytes that its JSON may have. deepest: brackets within brackets in it.

    Returns:
        what is declared of each tensor, by name, and the header, of neither of which the values are checked; and the
        number of bytes after them.

    Raises:
        ValueError: it is no message that `pack` makes.
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
    """One message from server to client: the plan and the tensors it needs."""
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
        experts=_experts(header.pop("experts")),
        **header,
    )
    return plan, tensors


def pack_update(update: ClientUpdate) -> bytes:
    """One message from client to server."""
    header = {f.name: getattr(update, f.name) for f in dataclasses.fields(update) if f.name != "tensors"}
    return pack(header, update.tensors)


def unpack_update(message: bytes) -> ClientUpdate:
    """Inverse of `pack_update`."""
    return make_update(*unpack(message))


def make_update(header: Mapping[str, Any], tensors: Tensors) -> ClientUpdate:
    """The update of this header."""
    tables = {name: _experts(header[name]) for name in ("experts", "shares", "preferences")}
    return ClientUpdate(tensors=tensors, **{**header, **tables})


def _experts(table: dict[str, list]) -> dict:
    """JSON has string keys and lists where the records have integers and tuples."""
    return {int(block): tuple(values) for block, values in table.items()}
