"""Checks what a recipe with differential privacy must say itself,
because a value taken from clients' data would reveal it.
"""

from fftmoe.config.privacy import PrivacySection
from fftmoe.config.schema import Recipe
from fftmoe.methods.registry import Capabilities

LABELLED = (
    "sequence-classification",
    "image-classification",
    "token-classification",
    "multi-label-classification",
)
"""The tasks whose outputs have names."""


def check_declared(recipe: Recipe, privacy: PrivacySection, method: Capabilities) -> None:
    """Refuse a recipe whose run would write something about clients' data that the guarantee does not cover.

    Raises:
        ValueError: says what to write instead.
    """
    if not privacy.differential:
        return
    if recipe.backbone.task in LABELLED and recipe.data.labels is None:
        raise ValueError(
            "with differential privacy the names of the labels must not come from clients' rows, because one row can "
            "add a name; write them in their order, for example data.labels=[negative, positive]"
        )
    if recipe.backbone.task == "regression" and recipe.data.target_scales == "auto":
        raise ValueError(
            "with differential privacy the scales of the targets must not come from clients' rows; write a "
            "[centre, scale] for each, for example data.target_scales=[[0, 100]], or data.target_scales=none"
        )
    if method.personal:
        raise ValueError(
            f"method {recipe.method} has no global model, and the clients' own models, which the run measures, carry "
            "no noise of the server; with differential privacy use another method"
        )
    for name in ("personal", "local_only"):
        if getattr(recipe.evaluation, name):
            raise ValueError(
                f"evaluation.{name} measures clients' own models, which the guarantee of differential privacy does "
                f"not cover; set evaluation.{name}=false"
            )
    if recipe.data.validation_examples is not None and recipe.partition.kind == "natural":
        raise ValueError(
            "data.validation_examples measures exactly on rows of clients, which differential privacy does not allow; "
            "leave it out, or give the source test rows that belong to no client"
        )
    if recipe.data.validation is not None:
        raise ValueError(
            "data.validation measures exactly on rows of clients, which differential privacy does not allow; set "
            "data.validation=off"
        )
    _check_budgets(recipe)


def _check_budgets(recipe: Recipe) -> None:
    """Check that the number of local steps is in the recipe; that of epochs' steps follows from the clients' rows."""
    limited = [tier.name for tier in recipe.budgets if tier.gflops is not None or tier.deadline_seconds is not None]
    if limited and recipe.federation.local_steps is None:
        raise ValueError(
            f"tier {limited[0]!r} has a limit on compute, from which experts are derived with the number of clients' "
            "rows; with differential privacy set federation.local_steps instead of local_epochs, or give the tier "
            "`top_k` and `experts`"
        )
