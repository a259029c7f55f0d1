"""What a recipe may say of its clients' privacy (docs/privacy.md)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from fftmoe.config.fields import OFF_AS_SAID, Count, Number, Positive, Section, stated

if TYPE_CHECKING:
    from fftmoe.config.schema import Recipe

REFUSED = {
    "hetlora": "weighs every client by the norm of what it sends",
    "flora": "hands the factors of every client to all others",
    "flexlora": "multiplies the factors of every client before it adds them",
    "flame": "weighs every client by the experts that its data activated",
    "local-only": "sends nothing that could be private",
    "centralized": "has all data in one place",
}


class ExamplePrivacy(Section):
    """Differential privacy of each client's examples, by noise that the client itself adds in every local step.

    An example's gradient is clipped to `clip_norm`, over all that is trained. `epsilon` ends the run before the round
    with which a client's examples would have cost more, at `delta`.
    """

    clip_norm: Positive
    noise_multiplier: Annotated[Number, Field(ge=0.3)]
    delta: Annotated[Number, Field(gt=0, lt=1)]
    epsilon: Positive | None = None


class Privacy(Section):
    """The server keeps sums over clients and nothing of one client; with noise, client-level differential privacy.

    A tensor or expert to which fewer than `min_contributors` clients contribute stays as it is. `clip_norm` bounds
    what a client sends, over all its tensors together.

    `noise_multiplier` or `epsilon` asks for differential privacy at `delta`. `epsilon` alone finds the noise with which
    all rounds cost no more; beside a `noise_multiplier` it ends the run before the round that would cost more. With
    `clip_quantile` the clip norm begins at `clip_norm` and follows that quantile of the clients' norms; only the server
    clips then, for it has to see them.

    `examples` protects single examples instead of whole clients, also from the server.
    """

    min_contributors: Count = 3
    clip_norm: Positive | None = None
    clip_quantile: Annotated[Number, Field(gt=0, lt=1)] | None = None
    noise_multiplier: Annotated[Number, Field(ge=0.3)] | None = None
    epsilon: Positive | None = None
    delta: Annotated[Number, Field(gt=0, lt=1)] | None = None
    examples: ExamplePrivacy | None = None

    @property
    def noisy(self) -> bool:
        """Whether differential privacy is asked for."""
        return self.noise_multiplier is not None or self.epsilon is not None

    @property
    def clip_by_clients(self) -> float | None:
        """The norm to which clients bring what they send; None: to none."""
        return self.clip_norm if self.clip_quantile is None else None

    @model_validator(mode="after")
    def _whole(self) -> "Privacy":
        if self.noisy and (self.clip_norm is None or self.delta is None):
            raise ValueError(
                "differential privacy needs privacy.clip_norm, the most that one client may send, and privacy.delta, "
                "well below one over the number of clients; say both"
            )
        if not self.noisy and (self.delta is not None or self.clip_quantile is not None):
            raise ValueError(
                "privacy.delta and privacy.clip_quantile belong to differential privacy; say privacy.epsilon or "
                "privacy.noise_multiplier as well, or leave them out"
            )
        return self

    def check(self, recipe: "Recipe") -> None:
        """Whether the recipe can be run so.

        Raises:
            ValueError: it cannot; the message says what to change.
        """
        federation, adapter = recipe.federation, recipe.adapter
        if recipe.robustness is not None:
            raise ValueError(
                "privacy hides single updates and robustness compares them, so a run can have one of the two: leave "
                "privacy or robustness out (privacy.clip_norm bounds what one client can do)"
            )
        if recipe.method in REFUSED:
            raise ValueError(
                f"method {recipe.method} {REFUSED[recipe.method]}, and privacy leaves nothing but sums; "
                "use fft-moe, fedit, ffa-lora, fedsa-lora or head-only, or leave privacy out"
            )
        if recipe.method == "fft-moe" and adapter.residents != "balanced":
            raise ValueError(
                f"adapter.residents={adapter.residents} follows from what clients tell of their routing, which privacy "
                "hides; use adapter.residents=balanced"
            )
        if federation.activation_power:
            raise ValueError(
                f"federation.activation_power={federation.activation_power:g} weighs clients by their routing, which "
                "privacy hides; leave it out"
            )
        if self.min_contributors > federation.clients_per_round:
            raise ValueError(
                f"privacy.min_contributors={self.min_contributors} is above federation.clients_per_round="
                f"{federation.clients_per_round}, so nothing would ever change; lower it, or raise the other"
            )
        if self.noisy:
            self._check_noisy(recipe)
        if self.examples is not None:
            self._check_examples(recipe)

    def _check_examples(self, recipe: "Recipe") -> None:
        if self.noisy:
            raise ValueError(
                "privacy.examples protects examples, and privacy.noise_multiplier or privacy.epsilon clients, with "
                "every example of theirs; use one of the two"
            )
        if recipe.federation.local_steps is None:
            raise ValueError(
                "privacy.examples counts local steps, which draw examples by chance; say federation.local_steps in the "
                "place of local_epochs"
            )
        if recipe.method == "fft-moe" and recipe.adapter.balance == "heterogeneity-aware":
            raise ValueError(
                "adapter.balance=heterogeneity-aware measures all of a client's routing, in which one example changes "
                "what others weigh; with privacy.examples use adapter.balance=switch or none"
            )
        if recipe.closed_form:
            raise ValueError(
                "a closed-form head is solved from exact sums over a client's examples; with privacy.examples use "
                "head.kind=averaged or one-vs-all"
            )

    def _check_noisy(self, recipe: "Recipe") -> None:
        if recipe.closed_form:
            raise ValueError(
                "a closed-form head is solved from exact sums, which have no noise on them; with differential privacy "
                "use head.kind=averaged or one-vs-all"
            )
        if recipe.federation.spare_clients:
            raise ValueError(
                "with differential privacy chance alone says who is in a round, so there are no clients in reserve; "
                "leave federation.spare_clients out"
            )


PrivacySection = Annotated[Privacy | None, stated("`privacy: {}` for sums only, or `privacy: off`"), OFF_AS_SAID]
"""`off`, or a section."""
