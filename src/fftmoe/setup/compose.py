"""From a recipe to the parts of an experiment. Only this folder reads recipes; parts get plain arguments."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import check_quantization, first_adapted_block, num_states, on_device
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.config import Recipe
from fftmoe.cost.analytic import tokens_per_round
from fftmoe.data import Examples, Partition, default_cache_dir, make_partition
from fftmoe.errors import InputError
from fftmoe.methods.base import Method
from fftmoe.methods.budget import Budgets, ExpertShape, Limits, assign_tiers, largest_tier, resolve
from fftmoe.records import Budget, Training
from fftmoe.records.codec import bytes_per_number
from fftmoe.rng import derive
from fftmoe.setup.centralized import centralized, is_centralized
from fftmoe.setup.load import Loaded, load_examples
from fftmoe.setup.method import build_method, expert_shape, fit_budgets
from fftmoe.setup.model import build_model, check_head
from fftmoe.setup.plugins import Plugins, check_named
from fftmoe.tasks import Task, make_task

BY_LABEL = ("dirichlet", "shards", "bernoulli-dirichlet")


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, made from a recipe.

    Attributes:
        model: the backbone with the adapter attached, resident in this process.
        label_names: the classes; none of a language model. strata: what `Examples.labels` numbers.
        tiers: the distinct budgets, in the recipe's order. `budgets`: client_id -> its tier.
        mean_tokens: of a training example. shape: of one expert.
        fewest_examples: of a client.
        remote: clients are elsewhere and hold their own data: `train` is empty and `partition` only names them.
        plugins: that the recipe may name, beside installed ones.
    """

    recipe: Recipe
    task: Task
    model: Any
    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    strata: tuple[str, ...]
    partition: Partition
    tiers: tuple[Budget, ...]
    budgets: Budgets
    training: Training
    mean_tokens: float
    shape: ExpertShape
    method: Method
    fewest_examples: int
    remote: bool = False
    plugins: Plugins = field(default_factory=Plugins)

    @property
    def num_clients(self) -> int:
        """Size of the population."""
        return len(self.partition)

    @property
    def largest(self) -> Budget:
        """The tier whose view of the global model is reported as the run's metric."""
        return largest_tier(self.tiers)


def compose(recipe: Recipe, plugins: Plugins | None = None) -> Experiment:
    """Load data and backbone, attach the adapter, partition, and resolve budgets.

    Args:
        plugins: that the recipe may name, beside installed ones.

    Raises:
        InputError: anything in the recipe that cannot be honoured; nothing has been written.
    """
    plugins = plugins or Plugins()
    check_named(recipe, plugins)
    check_quantization(recipe.backbone.quantization)
    data = load_examples(recipe)
    if is_centralized(recipe):
        clients = recipe.partition.num_clients or len(set(data.groups or ()))
        recipe, data = centralized(recipe, len(data.train), clients), replace(data, groups=None)
    _check_strata(recipe, data.strata)
    partition = _partition(recipe, data.train.labels.numpy(), data.groups, plugins)
    fractions = [b.fraction for b in recipe.budgets]
    tier_of = assign_tiers(fractions, len(partition), recipe.seed)
    return assemble(recipe, data, partition, tier_of, partition.sizes, plugins=plugins)


def assemble(
    recipe: Recipe,
    data: Loaded,
    partition: Partition,
    tier_of: np.ndarray,
    sizes: np.ndarray,
    remote: bool = False,
    plugins: Plugins | None = None,
) -> Experiment:
    """An experiment of clients whose data and tiers are known.

    Args:
        tier_of: integers [C], each client's place in the recipe's `budgets`.
        sizes: integers [C], each client's examples.

    Raises:
        InputError: as `compose`.
    """
    plugins = plugins or Plugins()
    model = build_model(recipe, data.label_names, plugins)
    check_head(recipe, model)
    _check_max_length(recipe, data.max_length, model)
    dims = adapter.block_dims(model.get_base_model(), recipe.adapter.blocks)
    shape = expert_shape(recipe, model.get_base_model(), plugins)
    training = training_of(recipe)
    mean_tokens = tokens_per_example(data.test if remote else data.train, model)
    tokens = tokens_per_round(training, int(sizes.sum()) / len(partition), mean_tokens)
    tiers = fit_budgets(recipe, model, _tiers(recipe, shape, tuple(dims), tokens), shape, plugins)
    if adapted := adapter.blocks(model):
        # The saved adapter opens as the run's metric was measured; the top_k may have been derived from limits.
        assert adapted.keys() == dims.keys()
        model.peft_config["default"].top_k = largest_tier(tiers).top_k
    budgets = Budgets.of(tiers, tier_of)
    cohort = recipe.federation.clients_per_round
    if cohort > len(budgets):
        raise InputError(
            f"federation.clients_per_round={cohort} is above the {len(budgets)} clients of the partition; lower it"
        )
    return Experiment(
        recipe=recipe,
        task=make_task(recipe.backbone.task),
        model=model,
        # Natural clients are those that may be sites of their own one day, and must have the same states there.
        train=data.train
        if remote
        else cached(recipe, model, data.train, partition.indices if partition.groups else None),
        test=cached(recipe, model, data.test),
        label_names=data.label_names,
        strata=data.strata,
        partition=partition,
        tiers=tiers,
        budgets=budgets,
        training=training,
        mean_tokens=mean_tokens,
        shape=shape,
        method=build_method(recipe, model, shape, budgets, plugins),
        fewest_examples=int(sizes.min()),
        remote=remote,
        plugins=plugins,
    )


def cached(recipe: Recipe, model: Any, examples: Examples, groups: Sequence[np.ndarray] | None = None) -> Examples:
    """The examples with the states below the adapter, where the recipe allows it; `groups` share no batch."""
    if recipe.engine.prefix_cache == "off":
        return examples
    limit = recipe.engine.prefix_cache_mib * 2**20
    return with_prefix(model, first_adapted_block(model), examples, default_cache_dir(), limit, groups)


def _check_strata(recipe: Recipe, strata: Sequence[str]) -> None:
    if len(strata) < 2 and recipe.partition.kind in BY_LABEL:
        raise InputError(
            f"partition.kind={recipe.partition.kind} divides the examples by their labels, and {recipe.data.source} "
            f"has no column {recipe.data.label!r} with at least two; name a column with data.label, or use "
            "partition.kind=iid or natural"
        )


def _partition(recipe: Recipe, labels: np.ndarray, groups: Sequence[Any] | None, plugins: Plugins) -> Partition:
    section = recipe.partition
    return make_partition(
        section.kind,
        labels=labels,
        num_clients=section.num_clients,
        seed=derive(recipe.seed, "partition"),
        alpha=section.alpha,
        shards_per_client=section.shards_per_client,
        holder_fraction=section.holder_fraction,
        groups=groups,
        min_examples=section.min_examples,
        divide=plugins.partitioner(section.kind),
    )


def _check_max_length(recipe: Recipe, model_max_length: int | None, model: Any) -> None:
    if model_max_length is None:  # images
        return
    positions = getattr(model.config, "max_position_embeddings", None) or model_max_length
    limit = min(model_max_length, positions)
    if recipe.data.max_length > limit:
        raise InputError(
            f"data.max_length={recipe.data.max_length} is above the {limit} tokens that {recipe.backbone.model} "
            f"can read; lower it to {limit}"
        )
    generate = recipe.evaluation.generate
    if generate is not None and recipe.data.max_length + generate.max_new_tokens > limit:
        raise InputError(
            f"evaluation.generate.max_new_tokens={generate.max_new_tokens} after prompts of up to "
            f"data.max_length={recipe.data.max_length} is above the {limit} tokens that {recipe.backbone.model} can "
            "read; lower one of the two"
        )


def training_of(recipe: Recipe) -> Training:
    """How clients train by this recipe."""
    federation, head, privacy = recipe.federation, recipe.head, recipe.privacy
    examples = None if privacy is None else privacy.examples
    return Training(
        batch_size=federation.batch_size,
        learning_rate=federation.learning_rate,
        head_learning_rate=(head and head.learning_rate) or 0.0,  # none where nobody trains it
        head_optimizer=head.optimizer if head else "sgd",
        train_head=head is not None and head.trained,
        local_epochs=federation.local_epochs,
        local_steps=federation.local_steps,
        group_by_length=federation.group_by_length,
        weight_decay=federation.weight_decay,
        proximal=federation.proximal,
        upload=federation.upload,
        private=privacy is not None,
        clip_norm=None if privacy is None else privacy.clip_by_clients,
        example_clip=None if examples is None else examples.clip_norm,
        example_noise=0.0 if examples is None else examples.noise_multiplier,
    )


def tokens_per_example(examples: Examples, model: Any) -> float:
    """The tokens of an average example; of an image, its patches and the tokens that the model adds to them."""
    batch = examples.batch([0])
    if "pixel_values" in batch:
        return float(num_states(model, on_device(model, batch)))
    return float(examples.lengths.double().mean())


def _tiers(recipe: Recipe, shape: ExpertShape, blocks: tuple[int, ...], tokens: int) -> tuple[Budget, ...]:
    tiers = []
    for section in recipe.budgets:
        own = own_blocks(section.name, section.blocks, blocks)
        limits = Limits(**section.model_dump(exclude={"blocks"}), blocks=None if section.blocks is None else own)
        tiers.append(
            resolve(
                limits,
                shape=shape,
                num_experts=recipe.adapter.num_experts,
                blocks=blocks,
                tokens_per_round=tokens,
                bytes_up=bytes_per_number(recipe.federation.upload, shape.dim),
            )
        )
    if set(largest_tier(tiers).blocks) != set(blocks):
        raise InputError(
            f"no tier of `budgets` has all the blocks of adapter.blocks, {list(blocks)}; "
            "give one tier all of them (leave out its `blocks`), or lower adapter.blocks"
        )
    return tuple(tiers)


def own_blocks(tier: str, wanted: str | list[int] | None, adapted: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks of a tier among the adapted ones; None: all.

    Raises:
        InputError: the tier names a block that is not adapted.
    """
    if wanted in (None, "all"):
        return adapted
    own = adapted[-int(wanted.removeprefix("last-")) :] if isinstance(wanted, str) else tuple(sorted(wanted))
    if not own or not set(own) <= set(adapted):
        raise InputError(
            f"budget {tier!r} names blocks {list(own)}, but the adapter is in {list(adapted)}; choose among those"
        )
    return own
