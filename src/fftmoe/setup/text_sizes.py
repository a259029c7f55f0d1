"""Measures how long the examples of a run are: whether its model can read them,
and the tokens with which costs are counted.
"""

from typing import Any

from fftmoe.backbones import num_states, on_device, readable_tokens
from fftmoe.config import Recipe
from fftmoe.data import Examples
from fftmoe.errors import InputError
from fftmoe.setup.load import longest_example, reads_images
from fftmoe.shown import count_of


def check_max_length(recipe: Recipe, model_max_length: int | None, model: Any) -> None:
    """Refuse texts that are longer than the model can read, whether or not the data has any.

    Args:
        model_max_length: tokens that the tokenizer allows; None for images.

    Raises:
        InputError: `data.max_length` is too large.
    """
    if model_max_length is None:  # images
        return
    positions = readable_tokens(model) or model_max_length
    limit = min(model_max_length, positions)
    if recipe.data.max_length > limit:
        raise InputError(
            f"data.max_length={recipe.data.max_length} is above the {count_of(limit, 'token')} that "
            f"{recipe.backbone.model} can read; lower it to {limit}"
        )
    generate = recipe.evaluation.generate
    if generate is not None and recipe.data.max_length + generate.max_new_tokens > limit:
        raise InputError(
            f"evaluation.generate.max_new_tokens={generate.max_new_tokens} after prompts of up to "
            f"data.max_length={recipe.data.max_length} is above the {count_of(limit, 'token')} that "
            f"{recipe.backbone.model} can read; lower one of the two"
        )


def counted_tokens(recipe: Recipe, examples: Examples, model: Any) -> float:
    """Return the tokens of an example with which costs are computed, and with them what a tier and a site can afford.

    With differential privacy it is the longest text that the recipe allows; for images it does not depend on them.
    """
    if recipe.differential and not reads_images(recipe):
        return float(longest_example(recipe))
    return _tokens_per_example(examples, model)


def _tokens_per_example(examples: Examples, model: Any) -> float:
    """Return the tokens of an average example; for an image, its patches and the tokens that the model adds."""
    batch = examples.batch([0])
    if "pixel_values" in batch:
        return float(num_states(model, on_device(model, batch)))
    return float(examples.lengths.double().mean())
