"""Checks what a recipe must have where clients train a part of the model for themselves (`federation.own_training`)."""

from fftmoe.config.schema import Recipe
from fftmoe.methods.registry import Capabilities


def check_own_training(recipe: Recipe) -> None:
    """Check that clients can train for themselves, and choose by rows of their own, where the recipe asks for it.

    Raises:
        ValueError: they cannot.
    """
    part = recipe.federation.own_training
    if part is None:
        return
    asked = f"federation.own_training={part:g}"
    if not recipe.backbone.is_language:
        raise ValueError(
            f"{asked} is for language models; for other tasks clients fit a part of their own to a closed-form head, "
            "without training: leave it out"
        )
    if recipe.data.validation is None:
        raise ValueError(
            f"{asked} is kept where rows that the client sets aside say so; set data.validation, for example to 0.1"
        )
    if recipe.privacy is not None:
        raise ValueError(f"{asked} measures single clients, which privacy hides; set federation.own_training=off")


def check_can_train_on(recipe: Recipe, method: Capabilities) -> None:
    """Refuse a method whose clients have no copy of the global model to train further.

    Raises:
        ValueError: the recipe lets clients train for themselves, and this is such a method.
    """
    if recipe.federation.own_training is None:
        return
    why = None
    if method.personal:
        why = "clients have models of their own already"
    elif method.pools_data:
        why = "there is one client, which holds all rows"
    elif not method.rounded_uploads:
        why = "each round starts with new factors, which are no copy of the global model"
    if why is not None:
        raise ValueError(
            f"federation.own_training={recipe.federation.own_training:g} trains copies of the global model further, "
            f"and with the method {recipe.method} {why}; set federation.own_training=off"
        )
