"""Builds and parses the names of tensors; no other module does either.

The global model, on the server and on the wire (M experts, d model dimension, h and S hidden units, r rank):

| name | shape | what |
|---|---|---|
| `blocks.{i}.router` | [M, d] | one row of the router for each expert of block i |
| `blocks.{i}.up`, `blocks.{i}.down` | [M, h, d] | the two layers of each expert |
| `shared.{i}.up`, `shared.{i}.down` | [S, d] | the shared expert of block i |
| `shared.{i}.{linear}.a`, `.b` | [r, d_in], [d_out, r] | the shared low-rank update of a linear layer |
| `head.{part}` | shape of the part | the classification head; a linear head has a weight and a bias |
| `lora.{path}.A`, `.B` | [r, d_in], [d_out, r] | the factors of a LoRA method |
| `merged.{path}.A`, `.B`, `.W` | as LoRA; W [d_out, d_in] | the sum that FLoRA has merged into a module so far |

A client sends its feature statistics for a closed-form head (F features, C classes, N examples) as `sums.moment`
[F + 1, C] and `sums.gram`, the upper triangle of a matrix [F + 1, F + 1], or `sums.factor` [N, F + 1]; `sums.squares`
[C], those of what is fitted, unless that is one-hot; and where outputs have probabilities, the sums `sums.scores` for
the temperature of the head that it was sent (`head/temperature.py`). A tensor that is sent as int8 has its scales in
`{name}:scale`.

In addition, a download contains `blocks.{i}.load`, the load of the client's experts. The state of a client contains
`blocks.{i}.affinity`, `blocks.{i}.scale` and, for every tensor that is uploaded in fewer bits, `feedback/{name}`.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["blocks", "shared", "head", "lora", "merged"]
ExpertPart = Literal["router", "up", "down", "load", "affinity", "scale"]
Moment = Literal["m", "v", "t"]

MERGED_PARTS = ("A", "B", "W")
FEEDBACK, FEEDBACK_EXPERTS, SCALE = "feedback/", ":experts", ":scale"


@dataclass(frozen=True)
class TensorName:
    """`TensorName` is a name split into its parts; `str` joins them.

    Attributes:
        family: the first part of the name.
        owner: a block index for `blocks` and `shared`, a module path for `lora` and `merged`, empty for `head`.
        part: the tensor of the owner, such as `up`, `query.a`, `weight` or `A`.
    """

    family: Family
    owner: int | str
    part: str

    def __str__(self) -> str:
        return f"head.{self.part}" if self.family == "head" else f"{self.family}.{self.owner}.{self.part}"


def parse(name: str) -> TensorName:
    """Split a name into its parts.

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
    """Return `blocks.{block}.{part}`, the name of a tensor with one row per expert of a block."""
    return f"blocks.{block}.{part}"


def expert_tensors(block: int) -> tuple[str, str, str]:
    """Return the names of a block's trained expert tensors: router, up, down."""
    return expert_tensor(block, "router"), expert_tensor(block, "up"), expert_tensor(block, "down")


def is_expert(name: str) -> bool:
    """Return whether the tensor has one row for each expert of a block."""
    return name.startswith("blocks.")


def block_of(name: str) -> int | None:
    """Return the block index of a tensor that has one row for each expert; None for every other tensor."""
    return int(name.split(".")[1]) if is_expert(name) else None


def load_of_block(block: int) -> str:
    """Return `blocks.{block}`, the key of a block in `ServerState.load`."""
    return f"blocks.{block}"


def block_of_load(key: str) -> int:
    """Return the block of a key that `load_of_block` made."""
    return int(key.removeprefix("blocks."))


# Tensors of a block that all clients share


def shared_tensors(block: int) -> tuple[str, str]:
    """Return the names of the two layers of a block's shared expert: up, down."""
    return f"shared.{block}.up", f"shared.{block}.down"


def shared_update(block: int, linear: str) -> str:
    """Return `shared.{block}.{linear}`, the low-rank update of a linear layer; `shared_factors` names its tensors."""
    return f"shared.{block}.{linear}"


def shared_factors(update: str) -> tuple[str, str]:
    """Return the names of the two factors of a low-rank update that `shared_update` names."""
    return f"{update}.a", f"{update}.b"


def shared_block_of(name: str) -> int | None:
    """Return the block of a shared tensor; None for every other tensor."""
    return int(name.split(".")[1]) if name.startswith("shared.") else None


# The head


def head_tensor(part: str) -> str:
    """Return `head.{part}`, the name of a parameter of the classification head."""
    return f"head.{part}"


def is_last_layer(name: str) -> bool:
    """Return whether the adapter adds nothing to the output where this tensor is zero; False for heads and routers."""
    return name.rpartition(".")[2] in ("down", "b", "B", "W")


def is_head(name: str) -> bool:
    """Return whether the tensor belongs to the classification head."""
    return name.startswith("head.")


HEAD_WEIGHT, HEAD_BIAS = head_tensor("weight"), head_tensor("bias")  # of a head that is one linear layer


# Feature statistics of a client, from which the server computes a closed-form head

STATISTICS_GRAM, STATISTICS_MOMENT = "sums.gram", "sums.moment"
STATISTICS_FACTOR = "sums.factor"  # in place of the Gram matrix, for few examples
STATISTICS_SQUARES = "sums.squares"  # of what is fitted, unless that is one-hot
STATISTICS_SCORES = "sums.scores"  # of the head that the client was sent, for its temperature


VALIDATION = "validation.statistics"
"""A client's statistics of its validation rows, float32 [K + 1]: those of the task, and the number of rows."""


OWN_MARGIN = "own.margin"
"""By how much a client's own part is better on the rows that it has set aside, float32 [1]; 0 where it has none."""


# LoRA


def lora_tensor(path: str, factor: str) -> str:
    """Return `lora.{path}.{factor}` for the factor "A" or "B" of the module at this path."""
    return f"lora.{path}.{factor}"


def merged_tensor(path: str, part: str) -> str:
    """Return `merged.{path}.{part}` for a factor "A" or "B", or for their product "W"."""
    return f"merged.{path}.{part}"


def merged_path(name: str) -> str | None:
    """Return the module path of a merged tensor; None for every other tensor."""
    return str(parse(name).owner) if name.startswith("merged.") else None


# Names derived from the name of a tensor


def module_of(name: str) -> str:
    """Return the name without its last part, which all tensors of one module share."""
    return name.rpartition(".")[0]


def moment(name: str, kind: Moment) -> str:
    """Return `{name}:{kind}`, the name of a moment of the server optimizer or of its count of steps."""
    return f"{name}:{kind}"


def scale_of(name: str) -> str:
    """Return `{name}:scale`, the scales of a tensor that is sent as int8."""
    return name + SCALE


def is_scale(name: str) -> bool:
    """Return whether a tensor holds the scales of another tensor."""
    return name.endswith(SCALE)


def feedback(name: str) -> str:
    """Return `feedback/{name}`, the part of a tensor's delta that the client has not uploaded yet."""
    return FEEDBACK + name


def feedback_experts(name: str) -> str:
    """Return `feedback/{name}:experts`, the experts to which the rows of the feedback belong."""
    return FEEDBACK + name + FEEDBACK_EXPERTS


def is_feedback(key: str) -> bool:
    """Return whether an entry of a client's state is feedback of its uploads."""
    return key.startswith(FEEDBACK)
