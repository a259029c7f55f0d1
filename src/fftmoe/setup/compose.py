"""Turns a recipe into an experiment: loads data and backbone, attaches the adapter, partitions,
and resolves budgets.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import check_quantization, check_vocabulary
from fftmoe.config import Recipe
from fftmoe.cost.analytic import tokens_per_round
from fftmoe.data import (
    Examples,
    Partition,
    Ragged,
    ReadAhead,
    cut_notes,
    equal_notes,
    largest_token,
    make_partition,
    own_rows,
    shared_notes,
    unowned_notes,
)
from fftmoe.data.partition import KINDS
from fftmoe.errors import InputError
from fftmoe.methods.budget import Budgets, ExpertShape, assign_tiers, largest_tier
from fftmoe.records import Budget
from fftmoe.rng import derive
from fftmoe.setup.centralized import centralized, is_centralized
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.held_out import hold_out
from fftmoe.setup.judged import judging_task
from fftmoe.setup.load import Loaded, load_examples
from fftmoe.setup.method import adapted_blocks, build_method, expert_shape, fit_budgets
from fftmoe.setup.model import build_model, check_head
from fftmoe.setup.plugins import Plugins, check_named
from fftmoe.setup.prepared import prepared
from fftmoe.setup.target_scales import with_scales
from fftmoe.setup.text_sizes import check_max_length, counted_tokens
from fftmoe.setup.tiers import make_tiers, training_of
from fftmoe.setup.warm_start import WarmStart, load_start, start_notes
from fftmoe.shown import count_of


def compose(
    recipe: Recipe, plugins: Plugins | None = None, read_ahead: ReadAhead | None = None, *, measures: bool = True
) -> Experiment:
    """Make the experiment that a recipe describes.

    Args:
        plugins: parts that the recipe may name, in addition to installed ones.
        read_ahead: what was read of the data while the recipe was completed.
        measures: whether the losses and the metrics of the examples will be looked at; what only these need takes
            long to compute.

    Raises:
        InputError: something in the recipe cannot be honoured; nothing has been written.
    """
    plugins = plugins or Plugins()
    check_named(recipe, plugins)
    check_quantization(recipe.backbone.quantization)
    data = load_examples(recipe, read_ahead)
    recipe = with_scales(recipe, data.train)
    if is_centralized(recipe):
        clients = recipe.partition.num_clients or len(set(data.groups or ()))
        recipe, data = centralized(recipe, len(data.train), clients), replace(data, groups=None, test_owners=None)
    _check_strata(recipe, data.strata)
    _check_population(recipe)
    partition = _partition(recipe, data, plugins)
    fractions = [b.fraction for b in recipe.budgets]
    tier_of = assign_tiers(fractions, len(partition), recipe.seed)
    return assemble(recipe, data, partition, tier_of, partition.sizes, plugins, measures=measures)


def assemble(
    recipe: Recipe,
    data: Loaded,
    partition: Partition,
    tier_of: np.ndarray,
    sizes: np.ndarray,
    plugins: Plugins,
    remote: bool = False,
    measures: bool = True,
) -> Experiment:
    """Make an experiment of clients whose data and tiers are known; it raises an InputError as `compose` does.

    Args:
        tier_of: integers [C], each client's place in the recipe's `budgets`.
        sizes: integers [C], the number of each client's examples, with those that it sets aside.
        measures: see `compose`.
    """
    model, start = _checked_model(recipe, data, plugins)
    shape = expert_shape(recipe, model.get_base_model(), plugins)
    kept, held_out = hold_out(recipe, data.train, partition, sizes, remote)
    sizes = sizes - held_out.numbers
    mean_tokens = counted_tokens(recipe, data.test if remote else data.train, model)
    budgets = _budgets_of(recipe, model, shape, sizes, mean_tokens, tier_of, plugins)
    own_test, unowned = _own_test(recipe, partition, data)
    return Experiment(
        recipe=recipe,
        task=judging_task(recipe),
        model=model,
        train=data.train if remote else _cached_train(recipe, model, data.train, partition, measures),
        test=prepared(recipe, model, data.test, measures=measures),
        label_names=data.label_names,
        strata=data.strata,
        partition=kept,
        held_out=held_out,
        budgets=budgets,
        training=training_of(recipe),
        mean_tokens=mean_tokens,
        shape=shape,
        method=build_method(recipe, model, shape, budgets, plugins),
        sizes=sizes,
        left_out=data.left_out,
        rows=data.rows,
        reader=data.reader,
        data_notes=(*data.notes, *_rows_lost(recipe, data), *start_notes(start, data.label_names), *unowned),
        own_test=own_test,
        remote=remote,
        plugins=plugins,
        start=start,
    )


def _checked_model(recipe: Recipe, data: Loaded, plugins: Plugins) -> tuple[Any, WarmStart | None]:
    """Return the backbone with its adapter and its head, which fit the data,
    and the adapter that the run starts from.
    """
    model = build_model(recipe, data.label_names, plugins)
    check_head(recipe, model)
    check_max_length(recipe, data.max_length, model)
    check_vocabulary(model, max(map(largest_token, (data.train, data.test))), recipe.backbone.model)
    return model, load_start(recipe, model)


def _own_test(recipe: Recipe, partition: Partition, data: Loaded) -> tuple[Ragged | None, tuple[str, ...]]:
    """Return each client's own test rows, where they say whose they are, and what a person should know of them."""
    if data.test_owners is None or partition.groups is None:
        return None, ()
    own = own_rows(partition.groups, data.test_owners)
    return own, unowned_notes(own, len(data.test), str(recipe.partition.by))


def _rows_lost(recipe: Recipe, data: Loaded) -> tuple[str, ...]:
    """Return what is cut of the rows, and which are in both splits."""
    length = recipe.data.max_length
    return (
        *cut_notes("training", data.train, length),
        *cut_notes("test", data.test, length),
        *shared_notes(data.train, data.test),
        *equal_notes("training", data.train),
        *equal_notes("test", data.test),
    )


def _budgets_of(
    recipe: Recipe,
    model: Any,
    shape: ExpertShape,
    sizes: np.ndarray,
    mean_tokens: float,
    tier_of: np.ndarray,
    plugins: Plugins,
) -> Budgets:
    """Return the budget of every client; `sizes` are the numbers of the examples that they train on."""
    tokens = tokens_per_round(training_of(recipe), int(sizes.sum()) / len(sizes), mean_tokens)
    budgets = Budgets.of(_tiers_on(recipe, model, shape, tokens, plugins), tier_of)
    _check_cohort(recipe, len(budgets))
    return budgets


def _tiers_on(recipe: Recipe, model: Any, shape: ExpertShape, tokens: int, plugins: Plugins) -> tuple[Budget, ...]:
    """Return the tiers as the method can honour them on this model;
    the adapter's own `top_k` becomes that of the largest.
    """
    blocks = tuple(adapted_blocks(recipe, model.get_base_model()))
    tiers = fit_budgets(recipe, model, make_tiers(recipe, shape, blocks, tokens), shape, plugins)
    if adapted := adapter.blocks(model):
        # A saved adapter opens as the run's metric was measured; the top_k may have been derived from limits.
        assert tuple(adapted) == blocks
        model.peft_config["default"].top_k = largest_tier(tiers).top_k
    return tiers


def _cached_train(recipe: Recipe, model: Any, train: Examples, partition: Partition, measures: bool) -> Examples:
    """Return the training examples with cached states.

    Natural clients may become sites of their own, which must have the same states to the last bit: such clients share
    no batch when the states are computed.
    """
    return prepared(recipe, model, train, partition.indices if partition.groups else None, measures)


def _check_strata(recipe: Recipe, strata: Sequence[str]) -> None:
    kind = KINDS.get(recipe.partition.kind)
    if len(strata) < 2 and kind is not None and kind.by_label:
        raise InputError(
            f"partition.kind={recipe.partition.kind} divides the examples by their labels, and {recipe.data.source} "
            f"has no column {recipe.data.label!r} with at least two; name a column with data.label, or use "
            "partition.kind=iid or natural"
        )


def _check_population(recipe: Recipe) -> None:
    """Check that clients' rows do not decide the number of clients, which decides the sampling rate and delta."""
    if recipe.differential and recipe.partition.kind == "natural" and recipe.partition.num_clients is None:
        raise InputError(
            "with differential privacy the number of clients must not come from their rows; write how many the column "
            f"of partition.by={recipe.partition.by} names, with partition.num_clients"
        )


def _partition(recipe: Recipe, data: Loaded, plugins: Plugins) -> Partition:
    section = recipe.partition
    return make_partition(
        section.kind,
        labels=data.train.labels.numpy(),
        num_clients=section.num_clients,
        seed=derive(recipe.seed, "partition"),
        alpha=section.alpha,
        shards_per_client=section.shards_per_client,
        holder_fraction=section.holder_fraction,
        groups=data.groups,
        min_examples=section.min_examples,
        divide=plugins.partitioner(section.kind),
        columns=data.columns,
    )


def _check_cohort(recipe: Recipe, num_clients: int) -> None:
    """Check that a cohort has no more clients than there are: of natural clients and sites that is known only now."""
    cohort = recipe.federation.clients_per_round
    if cohort > num_clients:
        raise InputError(
            f"federation.clients_per_round={cohort} is above the {count_of(num_clients, 'client')} of the partition; "
            "lower it"
        )
