"""Names of tensors. Only this module builds a name or takes one apart.

The global model, on the server and on the wire (M experts, d model dimension, h and S hidden units, r rank):

| name | shape | what |
|---|---|---|
| `blocks.{i}.router` | [M, d] | one row of the router for each expert of block i |
| `blocks.{i}.up`, `blocks.{i}.down` | [M, h, d] | the two layers of each expert |
| `shared.{i}.up`, `shared.{i}.down` | [S, d] | the shared expert of block i |
| `shared.{i}.{linear}.a`, `.b` | [r, d_in], [d_out, r] | the shared low-rank update of a linear layer |
| `head.{part}` | that of the part | the classification head; a linear one has a weight and a bias |
| `lora.{path}.A`, `.B` | [r, d_in], [d_out, r] | the factors of a LoRA method |
| `merged.{path}.A`, `.B`, `.W` | the same; W [d_out, d_in] | what FLoRA has merged into a module so far |

In addition, a download has `blocks.{i}.load`, the load of the client's experts, and the state of a client has
`blocks.{i}.affinity`, `blocks.{i}.scale` and, for every tensor that it uploads in fewer bits, `feedback/{name}`.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["blocks", "shared", "head", "lora", "merged"]
ExpertPart = Literal["router", "up", "down", "load", "affinity", "scale"]
Moment = Literal["m", "v", "t"]

MERGED_PARTS = ("A", "B", "W")
FEEDBACK, FEEDBACK_EXPERTS = "feedback/", ":experts"


@dataclass(frozen=True)
class TensorName:
    """A name in parts; `str` puts it together.

    Attributes:
        owner: a block index for `blocks` and `shared`, a module path for `lora` and `merged`, empty for `head`.
        part: what of the owner the tensor is, such as `up`, `query.a`, `weight` or `A`.
    """

    family: Family
    owner: int | str
    part: str

    def __str__(self) -> str:
        return f"head.{self.part}" if self.family == "head" else f"{self.family}.{self.owner}.{self.part}"


def parse(name: str) -> TensorName:
    """The parts of a name.

    Raises:
        ValueError: the name belongs to no family.
    """
    family, _, rest = name.partition(".")
    if family == "head":
        return TensorName("head", "", rest)
    if family in ("blocks", "shared"):
        block, _, part = rest.partition(".")
        return TensorName(family, int(block), part)
    if family in ("lora", "merged"):
        path, _, part = rest.rpartition(".")
        return TensorName(family, path, part)
    raise ValueError(f"{name!r} is not the name of a tensor")


# Experts


def expert_tensor(block: int, part: ExpertPart) -> str:
    """`blocks.{block}.{part}`: one row for each expert of a block."""
    return f"blocks.{block}.{part}"


def expert_tensors(block: int) -> tuple[str, str, str]:
    """The trained tensors of the experts of a block: router, up, down."""
    return expert_tensor(block, "router"), expert_tensor(block, "up"), expert_tensor(block, "down")


def is_expert(name: str) -> bool:
    """Whether the tensor has one row for each expert of a block."""
    return name.startswith("blocks.")


def block_of(name: str) -> int | None:
    """The block index of a tensor that has one row for each expert; None for every other tensor."""
    return int(name.split(".")[1]) if is_expert(name) else None


def load_of_block(block: int) -> str:
    """`blocks.{block}`: the key of a block in `ServerState.load`."""
    return f"blocks.{block}"


def block_of_load(key: str) -> int:
    """The inverse of `load_of_block`."""
    return int(key.removeprefix("blocks."))


# What all clients share in a block


def shared_tensors(block: int) -> tuple[str, str]:
    """The two layers of the shared expert of a block: up, down."""
    return f"shared.{block}.up", f"shared.{block}.down"


def shared_update(block: int, linear: str) -> str:
    """`shared.{block}.{linear}`: the low-rank update of a linear layer, whose tensors are `shared_factors`."""
    return f"shared.{block}.{linear}"


def shared_factors(update: str) -> tuple[str, str]:
    """The two factors of a low-rank update that `shared_update` names."""
    return f"{update}.a", f"{update}.b"


def shared_block_of(name: str) -> int | None:
    """The block of a shared tensor; None for every other tensor."""
    return int(name.split(".")[1]) if name.startswith("shared.") else None


# The head


def head_tensor(part: str) -> str:
    """`head.{part}`."""
    return f"head.{part}"


def is_head(name: str) -> bool:
    """Whether the tensor belongs to the classification head."""
    return name.startswith("head.")


HEAD_WEIGHT, HEAD_BIAS = head_tensor("weight"), head_tensor("bias")  # of a head that is one linear layer


# LoRA


def lora_tensor(path: str, factor: str) -> str:
    """`lora.{path}.{factor}` for a factor "A" or "B" of the module at this path."""
    return f"lora.{path}.{factor}"


def merged_tensor(path: str, part: str) -> str:
    """`merged.{path}.{part}` for the factors "A" and "B", or their product "W"."""
    return f"merged.{path}.{part}"


def merged_path(name: str) -> str | None:
    """The module path of a merged tensor; None for every other tensor."""
    return str(parse(name).owner) if name.startswith("merged.") else None


# What goes with a tensor


def module_of(name: str) -> str:
    """The name without its last part: what the tensors of one module have in common."""
    return name.rpartition(".")[0]


def moment(name: str, kind: Moment) -> str:
    """`{name}:{kind}`: a moment of the server optimizer, or its count of steps."""
    return f"{name}:{kind}"


def feedback(name: str) -> str:
    """`feedback/{name}`: what the client has not yet uploaded of a tensor."""
    return FEEDBACK + name


def feedback_experts(name: str) -> str:
    """`feedback/{name}:experts`: the experts to which the rows of the feedback belong."""
    return FEEDBACK + name + FEEDBACK_EXPERTS


def is_feedback(key: str) -> bool:
    """Whether an entry of a client's state is feedback of its uploads."""
    return key.startswith(FEEDBACK)
