"""Loads the training and test examples of a recipe, and single splits of its data or of another source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fftmoe.config import Recipe
from fftmoe.config.plugins import is_plugin
from fftmoe.data import Examples, ReadAhead, RowsDigest, SplitRequest, TextEncoding, owners_digest
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator
from fftmoe.setup.splits import Splits, load_splits
from fftmoe.shown import count_of


@dataclass(frozen=True)
class Loaded:
    """Holds a data set, ready for the model.

    Attributes:
        label_names: the classes or other names that the model predicts; empty for a language model.
        groups: the natural client of each training example, if the partition asks for it.
        max_length: tokens that the tokenizer allows; None for images.
        strata: the names that `Examples.labels` refers to, the classes if there are any.
        left_out: see `Splits`.
        rows: what was read, by split, before a subset of it was chosen. reader: see `Splits`.
        notes: what a person should know about the data.
        columns: all columns of the training rows as the file has them, where a plug-in divides them; else empty.
        test_owners: the natural client that each test row names; None where the test rows do not say whose they are.
    """

    train: Examples
    test: Examples
    label_names: tuple[str, ...]
    groups: Sequence[str] | None
    max_length: int | None
    strata: tuple[str, ...]
    rows: Mapping[str, RowsDigest]
    reader: str
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    notes: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    test_owners: Sequence[str | None] | None = None


def load_examples(recipe: Recipe, read_ahead: ReadAhead | None = None) -> Loaded:
    """Return the recipe's training and test examples, or the subset of them that it asks for.

    Args:
        read_ahead: what was read of the recipe's data already.

    Raises:
        InputError: the data or the model cannot be read.
    """
    by, data = recipe.partition.by, recipe.data
    request = SplitRequest(label_names=agreed_labels(recipe), declared=recipe.differential, read_ahead=read_ahead)
    found = load_splits(recipe, data.source, request, [by] if by else [])
    groups = found.columns.names[by] if by else None
    train, test = found.examples["train"], found.examples["test"]
    owners = test_owners(recipe, found)
    loaded = Loaded(
        train,
        test,
        found.label_names,
        groups,
        found.max_length,
        found.strata,
        {**found.rows, **({} if owners is None else {"test owners": owners_digest(owners)})},
        found.reader,
        found.left_out,
        (*found.columns.notes, *_alone_notes(by, groups)),
        found.columns.values if is_plugin(recipe.partition.kind) else {},
        owners,
    )
    if data.validation_examples is not None:
        loaded = _with_validation(loaded, data.validation_examples)
    rows = _subset(len(loaded.test), data.test_examples, "test")
    loaded = loaded if rows is None else _with_test(loaded, loaded.test, rows, loaded.test_owners)
    rows = _subset(len(loaded.train), data.train_examples, "train")
    return loaded if rows is None else _with_train(loaded, rows)


def test_owners(recipe: Recipe, found: Splits) -> Sequence[str | None] | None:
    """Return the natural client that each test row names; None where there are none, or the rows do not say it.

    With differential privacy nobody measures clients, so nobody asks whose the rows are.
    """
    natural = recipe.partition.kind == "natural" and not recipe.differential
    return found.columns.owners.get("test") if natural else None


def _alone_notes(by: str | None, groups: Sequence[str] | None) -> tuple[str, ...]:
    """Return a sentence about clients that are probably the numbers of rows."""
    if groups is None or len(set(groups)) < len(groups) or len(groups) < 2:
        return ()
    return (f"every row is a client of its own, because no two rows have the same value of {by!r}",)


def load_split(recipe: Recipe, split: str, label_names: Sequence[str], source: str | None = None) -> Examples:
    """Return the examples of `read_split`.

    Raises:
        InputError: see `read_split`.
    """
    return read_split(recipe, split, label_names, source).examples[split]


def read_split(
    recipe: Recipe,
    split: str,
    label_names: Sequence[str],
    source: str | None = None,
    encoding: TextEncoding | None = None,
) -> Splits:
    """Return a whole split of the recipe's data, or of `source`, with labels numbered as in `label_names`.

    Args:
        encoding: of the text files of `source`; the recipe's own are in that of the recipe, unless this names one.

    Without classes, the strata of the result are named by its rows.

    Raises:
        InputError: see `load_examples`; also, the split does not exist, or it has a label that is not in `label_names`.
    """
    own = source is None or source == recipe.data.source  # of another source all rows are meant
    if own and encoding is not None and encoding.name is None:
        encoding = None
    request = SplitRequest((split,), tuple(label_names) or None, evaluation=True, divide=own, encoding=encoding)
    return load_splits(recipe, source or recipe.data.source, request)


def longest_example(recipe: Recipe) -> int:
    """Return the tokens of the longest example that the recipe allows; a pair of answers has two texts."""
    return recipe.data.max_length * (2 if recipe.preference is not None else 1)


def reads_images(recipe: Recipe) -> bool:
    """Return whether examples are images; otherwise they are texts."""
    return recipe.backbone.task == "image-classification"


def is_language(recipe: Recipe) -> bool:
    """Return whether the model continues texts, which have no labels."""
    return recipe.backbone.is_language


def agreed_labels(recipe: Recipe) -> tuple[str, ...] | None:
    """Return the labels in their order, if the recipe names them."""
    return None if recipe.data.labels is None else tuple(recipe.data.labels)


def _with_train(loaded: Loaded, rows: np.ndarray) -> Loaded:
    """Return the data set with these of its training rows."""
    groups = None if loaded.groups is None else [loaded.groups[i] for i in rows]
    left_out = loaded.left_out[rows] if len(loaded.left_out) else loaded.left_out
    columns = {name: [values[int(i)] for i in rows] for name, values in loaded.columns.items()}
    return replace(loaded, train=loaded.train.select(rows), groups=groups, left_out=left_out, columns=columns)


def _with_test(loaded: Loaded, examples: Examples, rows: np.ndarray, owners: Sequence[str | None] | None) -> Loaded:
    """Return the data set with these rows as test rows, and with the client that each of them names."""
    own = None if owners is None else [owners[row] for row in rows]
    return replace(loaded, test=examples.select(rows), test_owners=own)


def _with_validation(loaded: Loaded, num_examples: int) -> Loaded:
    """Return the data set with random training rows in place of its test rows."""
    size = len(loaded.train)
    if num_examples >= size:
        raise InputError(
            f"data.validation_examples={num_examples} leaves nothing of the {count_of(size, 'training row')}; lower it"
        )
    order = numpy_generator(0, "validation").permutation(size)
    held, kept = np.sort(order[:num_examples]), np.sort(order[num_examples:])
    if len(loaded.left_out):  # their true labels are not known to the model
        held = held[~loaded.left_out[held]]
    return _with_train(_with_test(loaded, loaded.train, held, loaded.groups), kept)


def _subset(num_examples: int, size: int | None, split: str) -> np.ndarray | None:
    """Return rows in ascending order; None for all. All seeds of a recipe share it,
    because they must share their data.
    """
    if size is None or size >= num_examples:
        return None
    return np.sort(numpy_generator(0, "subset", split).choice(num_examples, size, replace=False))
