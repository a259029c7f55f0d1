"""Makes the method of a recipe, and computes the costs of its experts and tiers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fftmoe import adapter
from fftmoe.backbones.lora import lora_modules
from fftmoe.config import Recipe
from fftmoe.config.rules import check_capabilities
from fftmoe.errors import InputError
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import CostMatch, Method, MethodClass, MethodParts
from fftmoe.methods.budget import ExpertShape, pool_of_smallest
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.merge.aggregate import Merge
from fftmoe.methods.merge.robust import RobustMean, min_contributors
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.methods.registry import METHODS
from fftmoe.records import Budget
from fftmoe.setup.plugins import Plugins, is_method_class
from fftmoe.shown import count_of


def method_class(recipe: Recipe, plugins: Plugins | None = None) -> MethodClass:
    """Return the class of the recipe's method; for a plug-in function, the class of FFT-MoE, which it modifies."""
    if recipe.method in METHODS:
        return METHODS[recipe.method].load()
    made_by = (plugins or Plugins()).method(recipe.method)
    return made_by if is_method_class(made_by) else FftMoe


def build_method(
    recipe: Recipe,
    model: Any,
    shape: ExpertShape,
    budgets: Mapping[int, Budget],
    plugins: Plugins | None = None,
) -> Method:
    """Make the recipe's method for a population.

    Args:
        recipe: the checked recipe.
        model: the backbone with its adapter.
        shape: shape of one expert, see `expert_shape`.
        budgets: client_id -> budget.
        plugins: the registered plug-ins.
    """
    plugins, settings, federation = plugins or Plugins(), recipe.adapter, recipe.federation
    parts = MethodParts(
        budgets=budgets,
        seed=recipe.seed,
        modules=lora_modules(model),
        shape=shape,
        num_experts=pool_size(recipe, model.get_base_model(), plugins),
        optimizer=_server_optimizer(recipe),
        merge=plugins.aggregator(federation.aggregation) or _robust_merge(recipe),
        aggregation=federation.aggregation,
        activation_power=federation.activation_power,
        local=_local_settings(recipe),
        residents=settings.residents,
        explore=settings.explore,
        load_decay=settings.load_decay,
        weigh_load=recipe.robustness is None,  # a malicious client could claim any number of examples
    )
    method = method_class(recipe, plugins).make(parts)
    plugin: Any = plugins.method(recipe.method)
    if plugin is None:
        return method
    own: Method = method if is_method_class(plugin) else plugin(method)
    try:
        check_capabilities(recipe, own.capabilities)  # for the methods of fftmoe the recipe has been checked
    except ValueError as error:
        raise InputError(str(error)) from None
    return own


def _server_optimizer(recipe: Recipe) -> ServerOptimizer:
    """Return the server optimizer that the recipe states."""
    federation = recipe.federation
    return ServerOptimizer(
        kind=federation.server_optimizer,
        learning_rate=federation.server_learning_rate,
        beta1=federation.server_beta1,
        beta2=federation.server_beta2,
        epsilon=federation.server_epsilon,
    )


def _local_settings(recipe: Recipe) -> LocalSettings:
    """Return the constants of the client's routing and of its auxiliary losses that the recipe states."""
    settings = recipe.adapter
    return LocalSettings(
        balance=settings.balance,
        balance_strength=settings.balance_strength,
        balance_beta=settings.balance_beta,
        balance_epsilon=settings.balance_epsilon,
        z_strength=settings.z_strength,
        router=settings.router,
        personal_fraction=settings.personal_fraction,
    )


def _robust_merge(recipe: Recipe) -> Merge | None:
    """Return the robust mean that the recipe states; None for the method's own mean.

    Raises:
        InputError: a round has too few clients for the robust mean.
    """
    robustness, cohort = recipe.robustness, recipe.federation.clients_per_round
    if robustness is None:
        return None
    f, kind = robustness.num_malicious(cohort), robustness.aggregator
    if cohort < min_contributors(kind, f):
        raise InputError(
            f"robustness.aggregator={kind} needs {count_of(min_contributors(kind, f), 'update')}, of which {f} may be "
            f"malicious, but federation.clients_per_round={cohort}; raise clients_per_round, or lower "
            f"robustness.malicious_fraction={robustness.malicious_fraction:g}"
        )
    return partial(RobustMean, kind=kind, num_malicious=f, few=robustness.few_contributors)


# Costs of experts and tiers


def adapted_blocks(recipe: Recipe, model: Any) -> dict[int, int]:
    """Return the blocks of this backbone that the recipe adapts: block index -> model dimension, in depth order.

    Raises:
        InputError: the backbone has no such blocks.
    """
    return adapter.block_dims(model, recipe.adapter.blocks, recipe.adapter.target_modules)


def stated_shape(recipe: Recipe, model: Any, shared: bool = True) -> ExpertShape:
    """Return the shape of one expert for this backbone; if `shared`, it includes the recipe's shared parameters."""
    settings = recipe.adapter
    dims = adapted_blocks(recipe, model)
    block, dim = max(dims.items())
    if not shared:
        return ExpertShape(dim, settings.expert_dim)
    projections = adapter.projection_parameters(model, block, settings.shared_rank, settings.shared_targets)
    return ExpertShape(dim, settings.expert_dim, settings.shared_dim, projections)


def expert_shape(recipe: Recipe, model: Any, plugins: Plugins | None = None) -> ExpertShape:
    """Return the shape of one expert as the recipe's method uses it.

    If clients hold the whole pool, there are no shared parameters in addition to the experts.

    Args:
        recipe: the checked recipe.
        model: the backbone, with or without its adapter.
        plugins: the registered plug-ins.
    """
    return stated_shape(recipe, model, shared=not method_class(recipe, plugins).capabilities.whole_pool)


def pool_size(recipe: Recipe, model: Any, plugins: Plugins | None = None) -> int:
    """Return M, the number of experts in each block.

    Raises:
        InputError: the method derives M from the experts of each tier, and a tier does not state them.
    """
    if not method_class(recipe, plugins).capabilities.whole_pool:
        return recipe.adapter.num_experts
    stated = [tier.experts for tier in recipe.budgets if tier.experts is not None]
    if len(stated) < len(recipe.budgets):
        raise InputError(
            f"method {recipe.method} gives every client the whole pool, whose size follows from the tiers, but "
            f"`experts` is not stated in {len(recipe.budgets) - len(stated)} of "
            f"{count_of(len(recipe.budgets), 'tier')}; state `experts` in every tier of `budgets`"
        )
    return pool_of_smallest(stated_shape(recipe, model), stated)


def fit_budgets(
    recipe: Recipe, model: Any, tiers: Sequence[Budget], shape: ExpertShape, plugins: Plugins | None = None
) -> tuple[Budget, ...]:
    """Return the tiers as the method uses them: LoRA adds a rank of equal cost, and FLAME takes the whole pool.

    Args:
        recipe: the checked recipe.
        model: the backbone with its adapter.
        tiers: the tiers as the recipe states them.
        shape: shape of one expert, see `expert_shape`.
        plugins: the registered plug-ins.

    Raises:
        InputError: a tier is too small for the method.
    """
    pool = pool_size(recipe, model.get_base_model(), plugins)
    cost = CostMatch(shape, pool, lora_modules(model), recipe.lora.match)
    return method_class(recipe, plugins).fit(tiers, cost)
