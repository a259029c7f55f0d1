"""From a recipe to examples: texts and completions as tokens, or images as pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fftmoe.backbones import load_image_processor, load_tokenizer
from fftmoe.config import DataSection, Recipe
from fftmoe.data import (
    Examples,
    LabelledImages,
    LabelledText,
    Wanted,
    default_cache_dir,
    load_images,
    load_prompts,
    load_source,
    tokenize_cached,
    tokenize_completions,
    tokenize_texts,
)
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator
from fftmoe.setup.splits import Splits
from fftmoe.setup.targeted import TARGETED, load_targeted


@dataclass(frozen=True)
class Loaded:
    """A data set, ready for the model.

    Attributes:
        label_names: the classes; none where the task knows none.
        groups: the natural client of each training example, where the partition asks for it.
        max_length: tokens that the tokenizer allows; None for images.
        strata: the names of what `Examples.labels` numbers, the classes where there are some.
    """

    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    groups: Sequence[Any] | None
    max_length: int | None
    strata: tuple[str, ...]


def load_examples(recipe: Recipe) -> Loaded:
    """The recipe's training and test examples, or the subset of them that it asks for.

    Raises:
        InputError: the data or the model cannot be read.
    """
    by, section = recipe.partition.by, recipe.data
    found = load_splits(recipe, section.source, Wanted(label_names=agreed_labels(recipe)), [by] if by else [])
    groups = found.columns["train"][by] if by else None
    train, test = found.examples["train"], found.examples["test"]
    loaded = Loaded(train, test, found.label_names, groups, found.max_length, found.strata)
    if section.validation_examples is not None:
        loaded = _held_out(loaded, section.validation_examples)
    test = _subset(len(loaded.test), section.test_examples, "test")
    loaded = replace(loaded, test=loaded.test if test is None else loaded.test.select(test))
    train = _subset(len(loaded.train), section.train_examples, "train")
    return loaded if train is None else _with_train(loaded, train)


def _with_train(loaded: Loaded, rows: np.ndarray) -> Loaded:
    groups = None if loaded.groups is None else [loaded.groups[i] for i in rows]
    return replace(loaded, train=loaded.train.select(rows), groups=groups)


def _held_out(loaded: Loaded, num_examples: int) -> Loaded:
    """The data set with random training rows in the place of its test rows."""
    size = len(loaded.train)
    if num_examples >= size:
        raise InputError(
            f"data.validation_examples={num_examples} leaves nothing of the {size} training rows; lower it"
        )
    order = numpy_generator(0, "validation").permutation(size)
    held, kept = np.sort(order[:num_examples]), np.sort(order[num_examples:])
    return _with_train(replace(loaded, test=loaded.train.select(held)), kept)


def load_split(recipe: Recipe, split: str, label_names: Sequence[str], source: str | None = None) -> Examples:
    """A whole split of the recipe's data, or of `source`, its labels numbered as in `label_names`.

    Raises:
        InputError: as `load_split_by_stratum`.
    """
    return load_split_by_stratum(recipe, split, label_names, source)[0]


def load_split_by_stratum(
    recipe: Recipe, split: str, label_names: Sequence[str], source: str | None = None
) -> tuple[Examples, tuple[str, ...]]:
    """As `load_split`, with the names of what its labels number: `label_names`, or the strata where there are none.

    Raises:
        InputError: as `load_examples`; there is no such split, or the data has a label that is not in `label_names`.
    """
    section = recipe.data
    source, wanted = source or section.source, Wanted((split,), alone=True)
    if is_language(recipe) or recipe.backbone.task in TARGETED:
        found = load_splits(recipe, source, replace(wanted, label_names=tuple(label_names) or None))
        return found.examples[split], found.strata
    if reads_images(recipe):
        form = load_image_processor(recipe.backbone.model)
        images = load_images(source, size=form.size, image=section.image, label=section.label, wanted=wanted)
        labels = _renumbered(images, split, label_names, source)
        chosen = replace(images.splits[split], labels=labels)
        return chosen.examples(mean=form.mean, std=form.std, scale=form.scale), tuple(label_names)
    tokenizer = load_tokenizer(recipe.backbone.model)
    texts = load_source(source, text=section.text, label=section.label, wanted=wanted)
    labels = _renumbered(texts, split, label_names, source)
    examples = tokenize_texts(texts.splits[split].texts, labels, tokenizer, section.max_length)
    return examples, tuple(label_names)


def reads_images(recipe: Recipe) -> bool:
    """Whether examples are images; else they are texts."""
    return recipe.backbone.task == "image-classification"


def is_language(recipe: Recipe) -> bool:
    """Whether the task is to continue texts, which have no labels."""
    return recipe.backbone.task == "causal-lm"


def _renumbered(data: LabelledText | LabelledImages, split: str, label_names: Sequence[str], source: str) -> np.ndarray:
    """The labels of a split, int64 [N], as indices into `label_names`."""
    unknown = sorted(set(data.label_names) - set(label_names))
    if unknown:
        raise InputError(
            f"{source} has labels that the run was not trained on: {', '.join(unknown[:5])}; "
            f"the run knows {', '.join(label_names[:5])}, …"
        )
    number = np.array([label_names.index(name) for name in data.label_names])
    return number[data.splits[split].labels]


def _subset(num_examples: int, wanted: int | None, split: str) -> np.ndarray | None:
    """Rows in ascending order; None for all. The recipe's seed has no part in it, so seeds share their data."""
    if wanted is None or wanted >= num_examples:
        return None
    return np.sort(numpy_generator(0, "subset", split).choice(num_examples, wanted, replace=False))


def load_splits(recipe: Recipe, source: str, wanted: Wanted, columns: Sequence[str] = ()) -> Splits:
    """The wanted splits of a source of the recipe's kind.

    Raises:
        InputError: the data or the model cannot be read.
    """
    if is_language(recipe):
        return _completions(recipe, source, wanted, columns)
    if recipe.backbone.task in TARGETED:
        return load_targeted(recipe, source, wanted, columns)
    return (_images if reads_images(recipe) else _texts)(recipe, source, wanted, columns)


def agreed_labels(recipe: Recipe) -> tuple[str, ...] | None:
    """The labels that the recipe names, if it does."""
    return None if recipe.data.labels is None else tuple(recipe.data.labels)


def _texts(recipe: Recipe, source: str, wanted: Wanted, columns: Sequence[str]) -> Splits:
    tokenizer = load_tokenizer(recipe.backbone.model)  # first: the cheapest way to find a wrong model
    section = recipe.data
    data = load_source(source, text=section.text, label=section.label, extra_columns=columns, wanted=wanted)
    own = {name: data.splits[name] for name in wanted.needed}
    examples = {
        name: tokenize_cached(split, tokenizer, section.max_length, default_cache_dir()) for name, split in own.items()
    }
    further = {name: split.columns for name, split in own.items()}
    return Splits({**examples}, further, data.label_names, tokenizer.model_max_length, data.label_names)


def _completions(recipe: Recipe, source: str, wanted: Wanted, columns: Sequence[str]) -> Splits:
    """Divided by `data.label`, or by the natural client where the data has no such column."""
    tokenizer = load_tokenizer(recipe.backbone.model)
    section = recipe.data
    named = () if section.label == DataSection.model_fields["label"].default else (section.label,)
    splits, strata = load_prompts(
        source,
        text=section.text,
        prompt=section.prompt,
        completion=section.completion,
        strata=[name for name in (section.label, recipe.partition.by) if name is not None],
        extra_columns=(*named, *columns),
        wanted=wanted,
    )
    own = {name: splits[name] for name in wanted.needed}
    examples = {
        name: tokenize_completions(split, tokenizer, section.max_length, section.chat_template)
        for name, split in own.items()
    }
    further = {name: split.columns for name, split in own.items()}
    return Splits({**examples}, further, (), tokenizer.model_max_length, strata)


def _images(recipe: Recipe, source: str, wanted: Wanted, columns: Sequence[str]) -> Splits:
    form = load_image_processor(recipe.backbone.model)
    section = recipe.data
    data = load_images(
        source, size=form.size, image=section.image, label=section.label, extra_columns=columns, wanted=wanted
    )
    own = {name: data.splits[name] for name in wanted.needed}
    examples = {name: split.examples(mean=form.mean, std=form.std, scale=form.scale) for name, split in own.items()}
    further = {name: split.columns for name, split in own.items()}
    return Splits({**examples}, further, data.label_names, None, data.label_names)
