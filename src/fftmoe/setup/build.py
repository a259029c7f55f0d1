"""From a recipe to a model with an adapter, and to the method that trains it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import (
    attach_adapter,
    find_device,
    find_precision,
    head_parameters,
    load_backbone,
    place,
)
from fftmoe.backbones.lora import lora_config, lora_modules
from fftmoe.config import Recipe
from fftmoe.errors import InputError
from fftmoe.head import make_head
from fftmoe.methods.aggregate import Merge, WeightedSum
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import Method
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.ffa_lora import FfaLora
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flame import Flame
from fftmoe.methods.flexlora import FlexLora
from fftmoe.methods.flora import FLora
from fftmoe.methods.head_only import HeadOnly
from fftmoe.methods.hetlora import HetLora
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.lora import LoraMethod, matching_rank
from fftmoe.methods.robust import RobustMean, needed
from fftmoe.methods.server_optimizer import ServerOptimizer
from fftmoe.records import Budget
from fftmoe.rng import derive
from fftmoe.setup.plugins import Plugins
from fftmoe.tasks import LOSSES, Loss

LORA: dict[str, type[LoraMethod]] = {
    "fedit": FedIt,
    "ffa-lora": FfaLora,
    "fedsa-lora": FedSaLora,
    "hetlora": HetLora,
    "flora": FLora,
    "flexlora": FlexLora,
}


def build_model(recipe: Recipe, label_names: Sequence[str], plugins: Plugins | None = None) -> Any:
    """The frozen backbone with a fresh adapter of the kind that the method trains; the same in every process."""
    if recipe.method == "flora" and recipe.backbone.quantization != "none":
        raise InputError(
            "method flora adds what clients learned to the frozen weights, and rounded ones cannot take it up; set "
            "backbone.quantization to none, or use another method"
        )
    device = find_device(recipe.engine.device)
    backbone = load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names) or None,
        pooling=recipe.backbone.pooling,
        label_names=label_names or None,
        seed=derive(recipe.seed, "head"),
        head_bias=0.0 if recipe.head is None else make_head(recipe.head.kind).init_bias(len(label_names)),
        fourier_features=recipe.fourier_features,
        quantization=recipe.backbone.quantization,
        device=device,
    )
    blocks = tuple(adapter.block_dims(backbone, recipe.adapter.blocks))
    return place(_attach(recipe, backbone, blocks, plugins), device, find_precision(recipe.engine.precision, device))


def lora_method(recipe: Recipe, plugins: Plugins | None = None) -> type[LoraMethod] | None:
    """The class of the recipe's method where it is one of LoRA."""
    made_by = LORA.get(recipe.method) or (plugins or Plugins()).method(recipe.method)
    return made_by if isinstance(made_by, type) and issubclass(made_by, LoraMethod) else None


def _attach(recipe: Recipe, backbone: Any, blocks: Sequence[int], plugins: Plugins | None) -> Any:
    if lora_method(recipe, plugins):
        targets = target_names(backbone, blocks, recipe.lora.targets)
        return attach_adapter(backbone, lora_config(1, recipe.lora.scale, targets))
    settings, alone = recipe.adapter, recipe.method == "flame"
    _check_room(recipe, backbone, len(blocks))
    config = MoeAdapterConfig(
        num_experts=pool_size(recipe, backbone),
        expert_dim=settings.expert_dim,
        shared_dim=0 if alone else settings.shared_dim,
        shared_rank=0 if alone else settings.shared_rank,
        shared_targets=settings.shared_targets,
        top_k=1,  # each client's budget sets its own
        blocks=list(blocks),
        activation=settings.activation,
        gates=settings.gates,
        scale=settings.scale,
        compute=settings.compute,
        seed=derive(recipe.seed, "adapter"),
    )
    return attach_adapter(backbone, config)


def _check_room(recipe: Recipe, backbone: Any, num_blocks: int) -> None:
    """Whether this machine could hold the pool at all; a site gets its recipe from somebody else."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = 4 * num_blocks * expert_shape(recipe, backbone).block_parameters(pool_size(recipe, backbone))
    if needed > memory:
        raise InputError(
            f"the experts of adapter.num_experts={recipe.adapter.num_experts} and "
            f"adapter.expert_dim={recipe.adapter.expert_dim} take {needed / 2**30:.4g} GiB, and this machine has "
            f"{memory / 2**30:.4g}; lower one of the two, or adapt fewer blocks"
        )


def make_loss(recipe: Recipe) -> Loss:
    """What clients minimise."""
    if recipe.backbone.task in LOSSES:
        return LOSSES[recipe.backbone.task]()
    head = recipe.head
    assert head is not None, "a task with no loss of its own has a head"
    return make_head(head.kind)


def check_head(recipe: Recipe, model: Any) -> None:
    """Whether the sums give all of the model's head.

    Raises:
        InputError: the head is closed-form, and not one linear layer with a bias.
    """
    names = sorted(head_parameters(model))
    if recipe.closed_form and names != ["bias", "weight"]:
        raise InputError(
            f"a closed-form head is one linear layer with a bias, and this model's holds {', '.join(names) or 'none'}; "
            "set backbone.pooling to mean"
        )


def expert_shape(recipe: Recipe, model: Any, shared: bool = True) -> ExpertShape:
    """What one expert and, with `shared`, what all clients share costs in a block of this backbone."""
    settings = recipe.adapter
    dims = adapter.block_dims(model, settings.blocks)
    block, dim = max(dims.items())
    if not shared:
        return ExpertShape(dim, settings.expert_dim)
    projections = adapter.projection_parameters(model, block, settings.shared_rank, settings.shared_targets)
    return ExpertShape(dim, settings.expert_dim, settings.shared_dim, projections)


def pool_size(recipe: Recipe, model: Any) -> int:
    """M. Clients of FLAME hold the whole pool, and share nothing else, so theirs is what the smallest tier can hold."""
    if recipe.method != "flame":
        return recipe.adapter.num_experts
    stated = [tier.experts for tier in recipe.budgets if tier.experts is not None]
    if len(stated) < len(recipe.budgets):
        raise InputError("method flame gives every client the whole pool: state `experts` in every tier of `budgets`")
    shape = expert_shape(recipe, model)
    return shape.block_parameters(min(stated)) // shape.parameters


def fit_budgets(
    recipe: Recipe, model: Any, tiers: Sequence[Budget], shape: ExpertShape, plugins: Plugins | None = None
) -> tuple[Budget, ...]:
    """The tiers as the method can honour them: a LoRA rank that costs as much as the experts, or a smaller pool.

    Raises:
        InputError: a tier cannot hold LoRA of rank 1.
    """
    if recipe.method == "flame":
        pool = pool_size(recipe, model.get_base_model())
        return tuple(replace(tier, experts=pool, top_k=min(tier.top_k, pool)) for tier in tiers)
    lora = lora_method(recipe, plugins)
    if lora is None:
        return tuple(tiers)
    modules, sent = lora_modules(model), lora.sent
    return tuple(
        replace(
            tier,
            rank=matching_rank(
                tier.name,
                len(tier.blocks) * shape.block_parameters(tier.experts),
                modules,
                tier.blocks,
                recipe.lora.match,
                sent,
            ),
        )
        for tier in tiers
    )


def build_method(
    recipe: Recipe,
    model: Any,
    shape: ExpertShape,
    budgets: Mapping[int, Budget],
    plugins: Plugins | None = None,
) -> Method:
    """The method of the recipe, over this population."""
    plugins = plugins or Plugins()
    optimizer, aggregator = _server_optimizer(recipe), plugins.aggregator(recipe.federation.aggregation)
    if lora := lora_method(recipe, plugins):
        method = lora(budgets=budgets, modules=lora_modules(model), seed=recipe.seed)
        merge = aggregator or _merge(recipe)
        return replace(method, optimizer=optimizer, merge=merge) if isinstance(method, FedIt) else method
    if recipe.method == "head-only":
        return HeadOnly(merge=aggregator or _merge(recipe))
    if recipe.method == "flame":
        pool = pool_size(recipe, model.get_base_model())
        return Flame(budgets=budgets, shape=shape, num_experts=pool, optimizer=optimizer, seed=recipe.seed)
    method = _fft_moe(recipe, shape, budgets, aggregator)
    make: Any = plugins.method(recipe.method)
    if make is not None:
        # A subclass takes the very arguments, and not a method in their place.
        given = {item.name: getattr(method, item.name) for item in fields(method)}
        return make(**given) if isinstance(make, type) and issubclass(make, FftMoe) else make(method)
    return LocalOnly(method) if recipe.method == "local-only" else method


def _fft_moe(recipe: Recipe, shape: ExpertShape, budgets: Mapping[int, Budget], aggregator: Merge | None) -> FftMoe:
    settings, federation = recipe.adapter, recipe.federation
    mean = partial(WeightedSum, kind=federation.aggregation, activation_power=federation.activation_power)
    return FftMoe(
        budgets=budgets,
        shape=shape,
        num_experts=settings.num_experts,
        local=LocalSettings(
            balance=settings.balance,
            balance_strength=settings.balance_strength,
            balance_beta=settings.balance_beta,
            balance_epsilon=settings.balance_epsilon,
            z_strength=settings.z_strength,
            router=settings.router,
            personal_fraction=settings.personal_fraction,
        ),
        merge=aggregator or _merge(recipe, mean),
        optimizer=_server_optimizer(recipe),
        residents=settings.residents,
        explore=settings.explore,
        load_decay=settings.load_decay,
        weigh_load=recipe.robustness is None,  # a malicious client may say that it has any number of examples
        seed=recipe.seed,
    )


def _merge(recipe: Recipe, usual: Merge = WeightedSum) -> Merge:
    """The usual merge, or the robust one that the recipe asks for.

    Raises:
        InputError: a round has too few clients for it.
    """
    robustness, cohort = recipe.robustness, recipe.federation.clients_per_round
    if robustness is None:
        return usual
    f, kind = robustness.num_malicious(cohort), robustness.aggregator
    if cohort < needed(kind, f):
        raise InputError(
            f"robustness.aggregator={kind} needs {needed(kind, f)} updates to outlive {f} malicious ones, and "
            f"federation.clients_per_round={cohort}; raise that, or lower robustness.malicious_fraction="
            f"{robustness.malicious_fraction:g}"
        )
    return partial(RobustMean, kind=kind, num_malicious=f, few=robustness.few_contributors)


def _server_optimizer(recipe: Recipe) -> ServerOptimizer:
    federation = recipe.federation
    return ServerOptimizer(
        kind=federation.server_optimizer,
        learning_rate=federation.server_learning_rate,
        beta1=federation.server_beta1,
        beta2=federation.server_beta2,
        epsilon=federation.server_epsilon,
    )
