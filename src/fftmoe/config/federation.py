"""The recipe's `federation` section."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fftmoe.config.fields import WRITE_OFF, Count, Fraction, NotNegative, Number, Positive, Section, off_or_section
from fftmoe.config.plugins import own_or_plugin

PositiveOrOff = Annotated[Positive | None, off_or_section("a number above 0, or `off`"), WRITE_OFF]
CountOrOff = Annotated[Count | None, off_or_section("a whole number above 0, or `off`"), WRITE_OFF]


def _none_of_before(value: object) -> object:
    """The recipes of older runs say `null` where there is no bound."""
    return "none" if value is None else value


class FederationSection(Section):
    """Rounds, local training and aggregation.

    `group_by_length` puts texts of similar length in one batch, which reduces padding; without it a batch is drawn
    from all of a client's texts.
    `schedule` says how the learning rates change after the first `warmup_rounds` rounds, in which they grow evenly:
    not at all (`constant`), or down towards 0 along a line or half a cosine.
    `patience` ends the run after so many validations in a row without a gain (`data.validation`).
    `clip_gradients` bounds the Euclidean norm of a client's gradient in every step, over all trained tensors together.
    `upload` is the number format in which clients send their changes; each client adds what rounding left out to its
    next changes.
    `ema_decay` above 0 evaluates and saves a moving average of the global model over the rounds; 0.7 averages
    about three.

    For runs in which clients can be lost (not on one machine): a round asks `clients_per_round` clients and
    `over_selection` more (as in arXiv 2111.04877). It ends when `clients_per_round` have answered, or after
    `deadline_seconds`. If fewer than the fraction `quorum` of `clients_per_round` have answered by then, the round
    changes nothing.

    `max_update_norm` rejects a client's changes if their Euclidean norm, over all tensors, is above it. `auto` compares
    the clients of a round: at most ten times the median of at least three, or with fewer that of the last five rounds.
    It leaves out runs whose server must not compare (sums and noise of `privacy`) or does so anyway (`robustness`).
    `none` allows any.
    """

    rounds: Count
    clients_per_round: Count
    quorum: Fraction = 0.5
    over_selection: Annotated[int, Field(ge=0)] = 0
    deadline_seconds: Positive = 3600.0
    batch_size: Count
    learning_rate: Positive
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_rounds: Annotated[int, Field(ge=0, le=2**53)] = 0
    local_epochs: Count | None = None
    local_steps: Count | None = None
    group_by_length: bool = True
    weight_decay: NotNegative = 0.0
    proximal: NotNegative = 0.0
    clip_gradients: PositiveOrOff = None
    patience: CountOrOff = None
    aggregation: Annotated[str, own_or_plugin("per-expert", "fedavg")] = "per-expert"
    activation_power: NotNegative = 0.0
    upload: Literal["float32", "bfloat16", "int8"] = "float32"
    max_update_norm: Annotated[Positive | Literal["auto", "none"], BeforeValidator(_none_of_before)] = "auto"
    server_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    server_learning_rate: Positive = 1.0
    server_beta1: Fraction = 0.9
    server_beta2: Fraction = 0.99
    server_epsilon: Positive = 1e-3
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0

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
