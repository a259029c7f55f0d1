"""The recipe's sections on what is trained in the backbone's blocks: `adapter`, and `lora` for the LoRA methods."""

from typing import Annotated, Literal

from pydantic import Field

from fftmoe.config.fields import Blocks, Count, Fraction, NotNegative, Positive, Section


class AdapterSection(Section):
    """The pool of experts and its routing; the ablations of docs/math.md are switched here."""

    num_experts: Count
    expert_dim: Count
    shared_dim: Annotated[int, Field(ge=0)] = 0
    shared_rank: Annotated[int, Field(ge=0)] = 0
    shared_targets: Literal["query-value", "all-linear"] = "query-value"
    blocks: Blocks = "all"
    target_modules: str | Annotated[list[str], Field(min_length=1)] | None = None
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    gates: Literal["detached", "renormalized", "softmax"] = "detached"
    scale: Positive = 1.0
    compute: Literal["auto", "loop", "wide", "grouped"] = "auto"
    router: Literal["shared", "personal", "shared+personal"] = "shared"
    personal_fraction: Fraction = 0.5
    residents: Literal["personal", "balanced"] = "personal"
    explore: bool = True
    balance: Literal["heterogeneity-aware", "switch", "none"] = "heterogeneity-aware"
    balance_strength: NotNegative = 0.01
    balance_beta: NotNegative = 1.0
    balance_epsilon: Positive = 0.01
    z_strength: NotNegative = 0.001
    load_decay: Fraction = 0.5


class LoraSection(Section):
    """The layers that the LoRA methods adapt. A tier's rank follows from the cost of its experts.

    `match: parameters` gives a tier as many trainable parameters as its experts have, `uplink` as many bytes to send.
    """

    targets: Literal["query-value", "attention", "feed-forward", "all-linear"] = "query-value"
    scale: Positive = 2.0
    match: Literal["parameters", "uplink"] = "parameters"
