"""Makes the task by which a recipe's models are measured, and the loss that its clients minimise,
with their settings.
"""

from dataclasses import replace

from fftmoe.config import Recipe
from fftmoe.head import make_head
from fftmoe.setup.target_scales import scaled_loss, scaled_task
from fftmoe.tasks import LOSSES, Loss, PairLoss, Preference, Task


def judging_task(recipe: Recipe) -> Task:
    """Return the recipe's task: a regression's in the units of the data, a preference's with the recipe's loss."""
    task, pairs = scaled_task(recipe), pair_loss(recipe)
    return replace(task, objective=pairs) if isinstance(task, Preference) and pairs is not None else task


def make_loss(recipe: Recipe) -> Loss:
    """Make the loss that clients minimise."""
    if recipe.backbone.task in LOSSES:
        loss, pairs = scaled_loss(recipe), pair_loss(recipe)
        return pairs if isinstance(loss, PairLoss) and pairs is not None else loss
    head = recipe.head
    assert head is not None, "a task that defines no loss has a head"
    return make_head(head.kind)


def pair_loss(recipe: Recipe) -> PairLoss | None:
    """Return the loss of pairs of answers that the recipe asks for; None for every task but a preference."""
    asked = recipe.preference
    return None if asked is None else PairLoss(asked.loss, asked.beta, asked.margin)
