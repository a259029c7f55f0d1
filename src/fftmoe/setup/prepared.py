"""Computes once what the frozen model says of the examples of a run: states below the adapter, and references."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fftmoe.backbones import first_adapted_block, with_references
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.config import Recipe
from fftmoe.data import Examples, Preferences, default_cache_dir
from fftmoe.setup.judged import pair_loss


def prepared(
    recipe: Recipe,
    model: Any,
    examples: Examples,
    groups: Sequence[np.ndarray] | None = None,
    measures: bool = True,
) -> Examples:
    """Add to the examples what the frozen model says of them and what is computed once; `groups` share no batch.

    These are the states below the adapter, where the recipe allows it, and for a loss with a reference the
    log-probabilities of answers.
    """
    if not isinstance(examples, Preferences):
        return _cached(recipe, model, examples, groups)
    own = None if groups is None else [examples.rows_of_answers(rows).numpy() for rows in groups]
    examples = replace(examples, answers=_cached(recipe, model, examples.answers, own))
    pairs = pair_loss(recipe)
    if pairs is None or not pairs.has_reference or not measures:
        return examples
    return with_references(model, examples, default_cache_dir(), groups)


def _cached(recipe: Recipe, model: Any, examples: Examples, groups: Sequence[np.ndarray] | None) -> Examples:
    """Return the examples with the states below the adapter, where the recipe allows it."""
    if recipe.engine.prefix_cache == "off":
        return examples
    limit = recipe.engine.prefix_cache_mib * 2**20
    return with_prefix(model, first_adapted_block(model), examples, default_cache_dir(), limit, groups)
