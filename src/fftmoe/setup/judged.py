"""Makes the task by which a recipe's models are measured, the loss that its clients minimise, and what a closed-form
head is fitted to, with their settings.
"""

from dataclasses import replace

from fftmoe.config import Recipe
from fftmoe.head import ONE_LABEL, Answers, LeastSquares, SquaredDistance, make_head
from fftmoe.setup.target_scales import scaled_loss, scaled_task, scales_of
from fftmoe.tasks import FITTED, LOSSES, Loss, PairLoss, Preference, ScaledNumbers, Task


def judging_task(recipe: Recipe) -> Task:
    """Return the recipe's task: a regression's in the units of the data, a preference's with the recipe's loss."""
    task, pairs = scaled_task(recipe), pair_loss(recipe)
    return replace(task, objective=pairs) if isinstance(task, Preference) and pairs is not None else task


def make_loss(recipe: Recipe) -> Loss:
    """Make the loss that clients minimise."""
    if recipe.closed_form:
        answers = make_answers(recipe)
        return LeastSquares(answers=answers) if answers.one_each else SquaredDistance(answers=answers)
    if recipe.backbone.task in LOSSES:
        loss, pairs = scaled_loss(recipe), pair_loss(recipe)
        return pairs if isinstance(loss, PairLoss) and pairs is not None else loss
    head = recipe.head
    assert head is not None, "a task that defines no loss has a head"
    return make_head(head.kind)


def make_answers(recipe: Recipe) -> Answers:
    """Return what a closed-form head is fitted to; a language model, which has no head, is not asked."""
    answers = FITTED[recipe.backbone.task]() if recipe.backbone.task in FITTED else ONE_LABEL
    return replace(answers, scales=scales_of(recipe)) if isinstance(answers, ScaledNumbers) else answers


def pair_loss(recipe: Recipe) -> PairLoss | None:
    """Return the loss of pairs of answers that the recipe asks for; None for every task but a preference."""
    asked = recipe.preference
    return None if asked is None else PairLoss(asked.loss, asked.beta, asked.margin)
