"""From a recipe to the parts of an experiment. Only this folder reads recipes; parts get plain arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone, load_tokenizer
from fftmoe.client.runtime import ClientRuntime, ClientStates
from fftmoe.config import Recipe
from fftmoe.data import (
    LabelledText,
    Partition,
    TokenizedText,
    default_cache_dir,
    load_source,
    make_partition,
    tokenize_cached,
)
from fftmoe.errors import InputError
from fftmoe.evaluate import accuracy
from fftmoe.head import make_head
from fftmoe.methods.budget import ExpertShape, Limits, assign_tiers, resolve
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.fft_moe_client import LocalSettings
from fftmoe.methods.server_optimizer import ServerOptimizer
from fftmoe.records import Budget, Training
from fftmoe.rng import derive, numpy_generator


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, made from a recipe.

    Attributes:
        model: the backbone with the adapter attached, resident in this process.
        tiers: the distinct budgets, in the recipe's order. `budgets`: client_id -> its tier.
    """

    recipe: Recipe
    model: Any
    train: TokenizedText
    test: TokenizedText
    label_names: tuple[str, ...]
    partition: Partition
    tiers: tuple[Budget, ...]
    budgets: Mapping[int, Budget]
    training: Training
    method: FftMoe

    @property
    def num_clients(self) -> int:
        """Size of the population."""
        return len(self.partition.indices)

    @property
    def largest(self) -> Budget:
        """The tier whose view of the global model is reported as `accuracy`."""
        return _largest(self.tiers)


def _largest(tiers: Sequence[Budget]) -> Budget:
    return max(tiers, key=lambda tier: (len(tier.blocks), tier.top_k))


def compose(recipe: Recipe) -> Experiment:
    """Load data and backbone, attach the adapter, partition, and resolve budgets.

    Raises:
        InputError: anything in the recipe that cannot be honoured; nothing has been written.
    """
    tokenizer = load_tokenizer(recipe.backbone.model)  # first: the cheapest way to find a wrong model
    by = recipe.partition.by
    text = load_source(
        recipe.data.source, text=recipe.data.text, label=recipe.data.label, extra_columns=[by] if by else []
    )
    partition = _partition(recipe, text)
    train, test = (
        tokenize_cached(text.splits[name], tokenizer, recipe.data.max_length, default_cache_dir())
        for name in ("train", "test")
    )
    model = build_model(recipe, text.label_names)
    _check_max_length(recipe, tokenizer.model_max_length, model)
    modules = adapter.blocks(model)
    shape = ExpertShape(dim=next(iter(modules.values())).router.weight.shape[1], expert_dim=recipe.adapter.expert_dim)
    training = _training(recipe)
    tokens = _tokens_per_round(train, partition, training)
    tiers = _tiers(recipe, shape, tuple(modules), tokens)
    # The saved adapter opens as `accuracy` was measured; the top_k may have been derived from limits.
    model.peft_config["default"].top_k = _largest(tiers).top_k
    names = assign_tiers([b.fraction for b in recipe.budgets], len(partition.indices), recipe.seed)
    budgets = {client_id: tiers[tier] for client_id, tier in enumerate(names)}
    cohort = recipe.federation.clients_per_round
    if cohort > len(budgets):
        raise InputError(
            f"federation.clients_per_round={cohort} is above the {len(budgets)} clients of the partition; lower it"
        )
    method = _method(recipe, shape, budgets)
    return Experiment(recipe, model, train, test, text.label_names, partition, tiers, budgets, training, method)


def build_model(recipe: Recipe, label_names: Sequence[str]) -> Any:
    """The frozen backbone with a fresh adapter; the same in every process."""
    settings = recipe.adapter
    backbone = load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names),
        pooling=recipe.backbone.pooling,
        label_names=label_names,
        seed=derive(recipe.seed, "head"),
        head_bias=make_head(recipe.head.kind).init_bias(len(label_names)),
    )
    config = MoeAdapterConfig(
        num_experts=settings.num_experts,
        expert_dim=settings.expert_dim,
        top_k=1,  # each client's budget sets its own
        blocks=settings.blocks,
        activation=settings.activation,
        gates=settings.gates,
        scale=settings.scale,
        compute=settings.compute,
        seed=derive(recipe.seed, "adapter"),
    )
    return attach_adapter(backbone, config)


@dataclass(frozen=True)
class ClientSpec:
    """What a worker process needs to build its `ClientRuntime`; picklable, unlike a model."""

    recipe: Recipe
    label_names: tuple[str, ...]
    method: FftMoe
    train: TokenizedText
    partition: Sequence[np.ndarray]
    states: ClientStates
    holdout: TokenizedText


def build_client(spec: ClientSpec, model: Any = None) -> ClientRuntime:
    """The handler of an engine; `model` shares a resident one, otherwise a new one is loaded."""
    return ClientRuntime(
        model if model is not None else build_model(spec.recipe, spec.label_names),
        spec.method,
        make_head(spec.recipe.head.kind),
        spec.train,
        spec.partition,
        spec.states,
        partial(accuracy, examples=spec.holdout),
    )


def holdout(examples: TokenizedText, size: int | None, seed: int) -> TokenizedText:
    """A fixed random subset of `size` examples; all of them when `size` is None or larger."""
    if size is None or size >= len(examples):
        return examples
    rows = numpy_generator(seed, "holdout").choice(len(examples), size, replace=False)
    return examples.select(np.sort(rows))


def _partition(recipe: Recipe, text: LabelledText) -> Partition:
    section, train = recipe.partition, text.splits["train"]
    return make_partition(
        section.kind,
        labels=train.labels,
        num_clients=section.num_clients,
        seed=derive(recipe.seed, "partition"),
        alpha=section.alpha,
        shards_per_client=section.shards_per_client,
        holder_fraction=section.holder_fraction,
        groups=train.columns[section.by] if section.by else None,
        min_examples=section.min_examples,
    )


def _check_max_length(recipe: Recipe, model_max_length: int, model: Any) -> None:
    positions = getattr(model.config, "max_position_embeddings", None) or model_max_length
    limit = min(model_max_length, positions)
    if recipe.data.max_length > limit:
        raise InputError(
            f"data.max_length={recipe.data.max_length} is above the {limit} tokens that {recipe.backbone.model} "
            f"can read; lower it to {limit}"
        )


def _training(recipe: Recipe) -> Training:
    federation = recipe.federation
    return Training(
        batch_size=federation.batch_size,
        learning_rate=federation.learning_rate,
        head_learning_rate=recipe.head.learning_rate,
        head_optimizer=recipe.head.optimizer,
        local_epochs=federation.local_epochs,
        local_steps=federation.local_steps,
        weight_decay=federation.weight_decay,
        proximal=federation.proximal,
    )


def _tokens_per_round(train: TokenizedText, partition: Partition, training: Training) -> int:
    """Tokens that an average client trains on in a round."""
    mean_length = float(train.lengths.double().mean())
    if training.local_steps is not None:
        examples = float(training.local_steps * training.batch_size)
    else:
        examples = (training.local_epochs or 1) * len(train) / len(partition.indices)
    return max(1, round(examples * mean_length))


def _tiers(recipe: Recipe, shape: ExpertShape, blocks: tuple[int, ...], tokens: int) -> tuple[Budget, ...]:
    tiers = []
    for section in recipe.budgets:
        own = blocks if section.blocks is None else _own_blocks(section.name, section.blocks, blocks)
        limits = Limits(**section.model_dump(exclude={"blocks"}), blocks=own)
        tiers.append(
            resolve(
                limits,
                shape=shape,
                num_experts=recipe.adapter.num_experts,
                blocks=blocks,
                tokens_per_round=tokens,
            )
        )
    if set(_largest(tiers).blocks) != set(blocks):
        raise InputError(
            f"no tier of `budgets` has all the blocks of adapter.blocks, {list(blocks)}; "
            "give one tier all of them (leave out its `blocks`), or lower adapter.blocks"
        )
    return tuple(tiers)


def _own_blocks(tier: str, wanted: str | list[int], adapted: tuple[int, ...]) -> tuple[int, ...]:
    if wanted == "all":
        return adapted
    own = adapted[-int(wanted.removeprefix("last-")) :] if isinstance(wanted, str) else tuple(sorted(wanted))
    if not own or not set(own) <= set(adapted):
        raise InputError(
            f"budget {tier!r} names blocks {list(own)}, but the adapter is in {list(adapted)}; choose among those"
        )
    return own


def _method(recipe: Recipe, shape: ExpertShape, budgets: Mapping[int, Budget]) -> FftMoe:
    settings, federation = recipe.adapter, recipe.federation
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
        aggregation=federation.aggregation,
        activation_power=federation.activation_power,
        optimizer=ServerOptimizer(
            kind=federation.server_optimizer,
            learning_rate=federation.server_learning_rate,
            beta1=federation.server_beta1,
            beta2=federation.server_beta2,
            epsilon=federation.server_epsilon,
        ),
        residents=settings.residents,
        explore=settings.explore,
        load_decay=settings.load_decay,
        seed=recipe.seed,
    )
