"""Defines the recipe's `federation` section."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fftmoe.config.fields import (
    WRITE_OFF,
    Count,
    CountOrOff,
    Fraction,
    NotNegative,
    Number,
    Positive,
    Section,
    off_means,
    off_or_section,
)
from fftmoe.config.plugins import own_or_plugin

PositiveOrOff = Annotated[Positive | None, off_or_section("a number above 0, or `off`"), WRITE_OFF]


def _none_of_before(value: object) -> object:
    """Read the `null` that the recipes of older runs say where there is no bound, and `off`."""
    return "none" if value is None or value is False or value == "off" else value


class FederationSection(Section):
    """Describes rounds, local training and aggregation.

    Where clients can be lost (not on one machine), a round asks `clients_per_round` clients and `over_selection` more.
    It ends when `clients_per_round` have answered, or after `deadline_seconds`.
    """

    rounds: Count
    """The number of rounds."""
    clients_per_round: Count
    """The clients that train in a round, drawn by chance."""
    quorum: Fraction = 0.5
    """If fewer than this fraction of `clients_per_round` have answered, the round changes nothing. For clients that
    can be lost."""
    over_selection: Annotated[int, Field(ge=0)] = 0
    """Clients that are asked in addition, so that late and lost ones leave enough (arXiv 2111.04877)."""
    deadline_seconds: Positive = 3600.0
    """The time that a round waits for answers, where clients can be late."""
    batch_size: Count
    """Examples in a batch of local training."""
    learning_rate: Positive
    """The rate of the adapter's optimizer, AdamW, at the clients."""
    schedule: Annotated[Literal["constant", "linear", "cosine"], off_means("constant")] = "constant"
    """How the learning rates change over the rounds: not at all (also `off`), or down along a line or half a cosine."""
    warmup_rounds: Annotated[int, Field(ge=0, le=2**53), off_means(0)] = 0
    """Rounds in which the learning rates grow evenly to their full value; 0 or `off` for none."""
    local_epochs: Count | None = None
    """How often a client goes through its rows in a round; instead of `local_steps`."""
    local_steps: Count | None = None
    """Batches that a client trains on in a round. More of them save rounds and let clients drift apart."""
    group_by_length: bool = True
    """Put texts of similar length into one batch, which saves padding."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    proximal: NotNegative = 0.0
    """The weight of a pull towards the global model, for clients that drift apart (FedProx, arXiv 1812.06127)."""
    clip_gradients: PositiveOrOff = None
    """The largest norm of a client's gradient in a step, over all trained tensors, or `off`."""
    own_training: PositiveOrOff = None
    """After the last round, let each client of a language model train its copy of the adapter further on its own rows,
    with this part of the steps that an average client takes in all rounds. It keeps the copy, for its own use, where
    rows that it has set aside say so; nothing of it is sent. For at most 200 clients. Or `off`."""
    patience: CountOrOff = None
    """End the run when the metric on validation rows has not become better for so many measurements, or `off`."""
    aggregation: Annotated[str, own_or_plugin("per-expert", "fedavg")] = "per-expert"
    """How experts are averaged: over the clients that trained them (`per-expert`), or over the whole cohort
    (`fedavg`)."""
    activation_power: NotNegative = 0.0
    """Weigh a client's expert by its share of the client's routed tokens, to this power (gamma; FLAME, arXiv
    2506.16600); 0 does not."""
    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    """The number format of updates. A client adds what rounding left out to its next update."""
    max_update_norm: Annotated[Positive | Literal["auto", "none"], BeforeValidator(_none_of_before)] = "auto"
    """Reject a client's changes if their Euclidean norm, over all tensors, is above this. `auto` compares the clients
    of a round: at most ten times the median of at least three, or with fewer that of the last five rounds. It leaves
    out runs whose server must not compare (sums and noise of `privacy`) or does so anyway (`robustness`). `none`
    (also `off`) allows any."""
    server_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """What the server does with the mean update: add it, or use it as a gradient of momentum or Adam (FedOpt, arXiv
    2003.00295)."""
    server_learning_rate: Positive = 1.0
    """The factor on the mean update (eta)."""
    server_beta1: Fraction = 0.9
    """The server's momentum."""
    server_beta2: Fraction = 0.99
    """The decay of the second moment of `server_optimizer: adam`."""
    server_epsilon: Positive = 1e-3
    """What is added to the root of the second moment of `server_optimizer: adam`."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Evaluate and save a moving average of the global model; 0.7 averages about three rounds. For a head that clients
    train."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> "FederationSection":
        if self.local_epochs is None and self.local_steps is None:
            raise ValueError("neither local_epochs nor local_steps is set; set one of them")
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError(
                f"local_epochs={self.local_epochs} and local_steps={self.local_steps} exclude each other; remove one"
            )
        return self

    @model_validator(mode="after")
    def _rounds_after_warmup(self) -> "FederationSection":
        if self.warmup_rounds >= self.rounds:
            raise ValueError(
                f"warmup_rounds={self.warmup_rounds} leaves none of rounds={self.rounds} at the full learning rate; "
                "lower it"
            )
        return self
