"""Defines the recipe's sections on what is trained in the backbone's blocks: `adapter`,
and `lora` for the LoRA methods.
"""

from typing import Annotated, Literal

from pydantic import Field

from fftmoe.config.fields import Blocks, Count, Fraction, NotNegative, Positive, Section


class AdapterSection(Section):
    """Describes the pool of experts and its routing; the ablations of docs/math.md are switched here."""

    num_experts: Count
    """Experts in the pool of every adapted block (M). More of them let unlike clients train unlike experts; each is
    then trained on less data."""
    expert_dim: Count
    """Hidden units of one expert (h). An expert costs 2 h d + d parameters, where d is the model's dimension."""
    shared_dim: Annotated[int, Field(ge=0)] = 0
    """Hidden units of an expert that every client holds and every token uses; 0 for none (arXiv 2401.06066)."""
    shared_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the low-rank update of linear layers that all clients share and average; 0 for none. Raise it where
    central training is far better than the federation (LoRA's form, arXiv 2106.09685)."""
    shared_targets: Literal["query-value", "all-linear"] = "query-value"
    """The linear layers that get the shared update: the query and value projections, or all, including those of the
    feed-forward network. On language, all of them are better at equal cost."""
    blocks: Blocks = "all"
    """The Transformer blocks that are adapted: `all`, `last-third` (rounded up), `last-N`, or a list of indices. What
    lies below the first of them is computed once for each example."""
    target_modules: str | Annotated[list[str], Field(min_length=1)] | None = None
    """The feed-forward modules to adapt in a model of a family that fftmoe does not know: a regular expression for
    whole names, or endings of names. Blocks are then counted in the order of these modules."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """The function between an expert's two layers."""
    gates: Literal["detached", "renormalized", "softmax"] = "detached"
    """How the outputs of a token's experts are weighted (docs/math.md, Router and Gates). `detached` lets the router
    learn even with one expert a token."""
    scale: Positive = 1.0
    """The factor on what the experts add to a block (s). Lower it where the shared update should lead."""
    compute: Literal["auto", "loop", "wide", "grouped"] = "auto"
    """Which of three equal implementations of the experts runs; `auto` chooses by a measured rule."""
    router: Literal["shared", "personal", "shared+personal"] = "shared"
    """Which part of the router's change stays at the client: none (`shared`), all (`personal`), or `personal_fraction`
    of it."""
    personal_fraction: Fraction = 0.5
    """With `router: shared+personal`, the part of the router's change that stays at the client (pi)."""
    residents: Literal["personal", "balanced"] = "personal"
    """How a client's resident experts are chosen: by its own routing (`personal`), or by a fixed design in which every
    expert has as many holders (`balanced`), as `privacy` needs."""
    explore: bool = True
    """Whether each client gives one of its places to the expert that the fewest clients hold."""
    balance: Literal["heterogeneity-aware", "switch", "none"] = "heterogeneity-aware"
    """The auxiliary loss that keeps experts evenly used: with a target that follows the load of the federation, with a
    uniform target (`switch`, arXiv 2101.03961), or none."""
    balance_strength: NotNegative = 0.01
    """The weight of the balance loss (lambda). Raise it if few experts get all tokens; the report shows their load."""
    balance_beta: NotNegative = 1.0
    """How strongly the balance loss prefers experts with little load in the federation (beta); 0 prefers none."""
    balance_epsilon: Positive = 0.01
    """Keeps the target of an expert without load finite (epsilon)."""
    z_strength: NotNegative = 0.001
    """The weight of the z-loss, which keeps the router's logits small (arXiv 2202.08906)."""
    load_decay: Fraction = 0.5
    """How much of the former load of the experts the moving average keeps in each round (rho)."""


class LoraSection(Section):
    """Names the layers that the LoRA methods adapt. A tier's rank follows from the cost of its experts.

    `match: parameters` gives a tier as many trainable parameters as its experts have, `uplink` as many bytes to send.
    """

    targets: Literal["query-value", "attention", "feed-forward", "all-linear"] = "query-value"
    """The linear layers that LoRA adapts."""
    scale: Positive = 2.0
    """The factor on a LoRA update, alpha / rank, for every rank (arXiv 2106.09685)."""
    match: Literal["parameters", "uplink"] = "parameters"
    """What LoRA's rank is chosen by, for each tier: as many trained `parameters` as its experts have, or as many bytes
    to send (`uplink`)."""
