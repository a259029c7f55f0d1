"""Makes the tiers of clients from a recipe's `budgets`, and decides from its sections how clients train."""

from fftmoe.config import Recipe
from fftmoe.errors import InputError
from fftmoe.methods.budget import ExpertShape, Limits, largest_tier, resolve
from fftmoe.records import Budget, Schedule, Training
from fftmoe.records.codec import bytes_per_number


def make_tiers(recipe: Recipe, shape: ExpertShape, blocks: tuple[int, ...], tokens: int) -> tuple[Budget, ...]:
    """Resolve every budget of the recipe.

    Args:
        blocks: the adapted blocks. tokens: on which an average client trains in a round.

    Raises:
        InputError: a budget cannot hold one expert, or no tier has all adapted blocks.
    """
    tiers = []
    for section in recipe.budgets:
        own = own_blocks(section.name, section.blocks, blocks)
        limits = Limits(**section.model_dump(exclude={"blocks"}), blocks=None if section.blocks is None else own)
        tiers.append(
            resolve(
                limits,
                shape=shape,
                num_experts=recipe.adapter.num_experts,
                blocks=blocks,
                tokens_per_round=tokens,
                bytes_up=bytes_per_number(recipe.federation.upload, shape.dim),
            )
        )
    if set(largest_tier(tiers).blocks) != set(blocks):
        raise InputError(
            f"no tier of `budgets` has all the blocks of adapter.blocks, {list(blocks)}; "
            "give one tier all of them (leave out its `blocks`), or lower adapter.blocks"
        )
    return tuple(tiers)


def own_blocks(tier: str, wanted: str | list[int] | None, adapted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the blocks of a tier among the adapted ones; all of them for None.

    Raises:
        InputError: the tier names a block that is not adapted.
    """
    if wanted in (None, "all"):
        return adapted
    if wanted == "last-third":
        wanted = f"last-{-(-len(adapted) // 3)}"
    own = adapted[-int(wanted.removeprefix("last-")) :] if isinstance(wanted, str) else tuple(sorted(wanted))
    if not own or not set(own) <= set(adapted):
        raise InputError(
            f"budget {tier!r} names blocks {list(own)}, but the adapter is in {list(adapted)}; choose among those"
        )
    return own


def training_of(recipe: Recipe) -> Training:
    """Return how clients train."""
    federation, head, privacy = recipe.federation, recipe.head, recipe.privacy
    examples = None if privacy is None else privacy.examples
    return Training(
        batch_size=federation.batch_size,
        learning_rate=federation.learning_rate,
        head_learning_rate=(head and head.learning_rate) or 0.0,  # 0 where the head is not trained
        head_optimizer=head.optimizer if head else "sgd",
        train_head=head is not None and head.trained,
        local_epochs=federation.local_epochs,
        local_steps=federation.local_steps,
        group_by_length=federation.group_by_length,
        weight_decay=federation.weight_decay,
        proximal=federation.proximal,
        clip_gradients=federation.clip_gradients,
        upload=federation.upload,
        private=privacy is not None,
        clip_norm=None if privacy is None else privacy.clip_by_clients,
        example_clip=None if examples is None else examples.clip_norm,
        example_noise=0.0 if examples is None else examples.noise_multiplier,
    )


def schedule_of(recipe: Recipe) -> Schedule:
    """Return how the learning rates change over the rounds."""
    federation = recipe.federation
    return Schedule(federation.schedule, federation.warmup_rounds, federation.rounds)
