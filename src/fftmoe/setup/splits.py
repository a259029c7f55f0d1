"""Reads splits of examples from a source as a recipe asks, with one function for each kind of task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fftmoe.backbones import ImageFormat, load_image_processor, load_tokenizer
from fftmoe.config import DataSection, Recipe
from fftmoe.data import (
    Examples,
    ImageExamples,
    ListCells,
    RowsDigest,
    SplitRequest,
    Table,
    TargetedText,
    TextEncoding,
    TokenizedText,
    check_content,
    check_tagged,
    default_cache_dir,
    digest_of_rows,
    list_names,
    lists_of,
    names_of,
    near_equal_notes,
    number_classes,
    number_strata,
    numbers_of,
    owners_of,
    read_pixels,
    read_tables,
    several_hot,
    texts_of,
    tokenize_cached,
    tokenize_completions,
    tokenize_preferences,
    tokenize_tagged,
    tokenize_texts,
    tokenizer_digest,
    with_declared_labels,
)


@dataclass(frozen=True)
class FurtherColumns:
    """Names what else there is in the first requested split.

    Attributes:
        names: the names in the extra columns, such as those of natural clients, by column.
        notes: sentences about columns whose names are nearly equal.
        values: of all columns, as the file has them.
        owners: by split, the natural client that each row names; None for a row that names nobody. Splits without the
            column of the clients are left out.
    """

    names: Mapping[str, list[str]]
    notes: tuple[str, ...]
    values: Mapping[str, Sequence[Any]]
    owners: Mapping[str, list[str | None]]


@dataclass(frozen=True)
class Splits:
    """Holds the requested splits of a source, ready for the model.

    Attributes:
        examples: by split.
        columns: the extra columns.
        label_names: the classes or other names that the model predicts; empty for a language model.
        strata: the names that `Examples.labels` refers to, the classes if there are any.
        max_length: tokens that the tokenizer allows; None for images.
        rows: what was read, by split. reader: the digest of the tokenizer, or how images are prepared.
        left_out: bool [N], True for the training rows from which nothing may be learnt, because their label is not
            declared; empty where no labels have to be.
    """

    examples: Mapping[str, Examples]
    columns: FurtherColumns
    label_names: tuple[str, ...]
    strata: tuple[str, ...]
    max_length: int | None
    rows: Mapping[str, RowsDigest]
    reader: str
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


def load_splits(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str] = ()) -> Splits:
    """Read the examples of a source for the recipe's task: for training, evaluation, exports or sites.

    Args:
        columns: further columns to keep, which the first requested split must have.

    Raises:
        InputError: the data or the model cannot be read.
    """
    encoding = request.encoding or TextEncoding(recipe.data.encoding)
    request = replace(request, client=recipe.partition.by, encoding=encoding)
    return LOADERS[recipe.backbone.task](recipe, source, request, columns)


def _classified_texts(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer = load_tokenizer(recipe.backbone.model)  # first: the cheapest way to find a wrong model
    data = recipe.data
    content = {"data.text": [data.text], "data.label": [data.label]}
    tables, left_out, read = _labelled(source, content, data.label, columns, request)
    labels, names = number_classes(tables, data.label, request)
    cache = None if request.evaluation else default_cache_dir()
    examples = {
        split: tokenize_cached(
            texts_of(tables[split], "data.text", data.text), labels[split], tokenizer, data.max_length, cache
        )
        for split in request.splits
    }
    for split in request.splits:
        check_content(tables[split].origin, examples[split], tokenizer)
    rows = _row_digests(read, [data.text, data.label], examples)
    found = _further_columns(tables, columns, request)
    reader = tokenizer_digest(tokenizer)
    return Splits(examples, found, names, names, tokenizer.model_max_length, rows, reader, left_out)


def _images(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    form = load_image_processor(recipe.backbone.model)
    data = recipe.data
    content = {"data.image": [data.image], "data.label": [data.label]}
    tables, left_out, read = _labelled(source, content, data.label, columns, request)
    labels, names = number_classes(tables, data.label, request)
    examples = {split: _images_of(tables[split], labels[split], data.image, form) for split in request.splits}
    rows = _row_digests(read, [data.label], examples)
    return Splits(examples, _further_columns(tables, columns, request), names, names, None, rows, repr(form), left_out)


def _completions(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer = load_tokenizer(recipe.backbone.model)
    data = recipe.data
    key, column = ("data.text", data.text) if data.completion is None else ("data.completion", data.completion)
    content = {key: [column]} if data.prompt is None else {"data.prompt": [data.prompt], key: [column]}
    # A column that the recipe names must exist; the default name may be absent, and then the examples have no strata.
    named = () if data.label == DataSection.model_fields["label"].default else (data.label,)
    tables = read_tables(source, content, (*named, *columns), request)
    labels, strata = number_strata(tables, _dividing(recipe, ()))
    examples = {
        split: tokenize_completions(
            tables[split].origin,
            None if data.prompt is None else texts_of(tables[split], "data.prompt", data.prompt),
            texts_of(tables[split], key, column),
            labels[split],
            tokenizer,
            data.max_length,
            data.chat_template,
        )
        for split in request.splits
    }
    rows = _row_digests(tables, [*(name for own in content.values() for name in own), data.label], examples)
    found = _further_columns(tables, columns, request)
    return Splits(examples, found, (), strata, tokenizer.model_max_length, rows, tokenizer_digest(tokenizer))


def _preferences(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer, data = load_tokenizer(recipe.backbone.model), recipe.data
    assert data.prompt is not None
    assert data.chosen is not None
    assert data.rejected is not None
    content = {"data.prompt": data.prompt, "data.chosen": data.chosen, "data.rejected": data.rejected}
    named = () if data.label == DataSection.model_fields["label"].default else (data.label,)
    tables = read_tables(source, {key: [name] for key, name in content.items()}, (*named, *columns), request)
    labels, strata = number_strata(tables, _dividing(recipe, ()))
    examples = {}
    for split in request.splits:
        prompts, chosen, rejected = (texts_of(tables[split], key, name) for key, name in content.items())
        examples[split] = tokenize_preferences(
            tables[split].origin,
            prompts,
            (chosen, rejected),
            labels[split],
            tokenizer,
            data.max_length,
            data.chat_template,
        )
    rows = _row_digests(tables, [*content.values(), data.label], examples)
    found = _further_columns(tables, columns, request)
    return Splits(examples, found, (), strata, tokenizer.model_max_length, rows, tokenizer_digest(tokenizer))


def _tagged_words(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer, data = load_tokenizer(recipe.backbone.model), recipe.data
    content = {"data.tokens": [data.tokens], "data.tags": [data.tags]}
    request = _with_lists(request, recipe, (data.tokens, data.tags))
    tables, left_out, read = _labelled(source, content, data.tags, columns, request)
    labels, strata = number_strata(tables, _dividing(recipe, (data.tokens, data.tags)))
    tags = {split: lists_of(tables[split], "data.tags", data.tags) for split in request.splits}
    names = list_names(tables, tags, request)
    examples = {
        split: tokenize_tagged(
            tables[split].origin,
            lists_of(tables[split], "data.tokens", data.tokens),
            tags[split],
            names,
            labels[split],
            tokenizer,
            data.max_length,
        )
        for split in request.splits
    }
    for split in request.splits:
        check_tagged(tables[split].origin, examples[split], data.max_length)
    rows = _row_digests(read, [data.tokens, data.tags, data.label], examples)
    found = _further_columns(tables, columns, request)
    reader = tokenizer_digest(tokenizer)
    return Splits(examples, found, names, strata, tokenizer.model_max_length, rows, reader, left_out)


def _with_lists(request: SplitRequest, recipe: Recipe, columns: Sequence[str]) -> SplitRequest:
    """Return the request with lists in these columns, if the recipe says what divides the items in a cell of text."""
    separator = recipe.data.list_separator
    return request if separator is None else replace(request, lists=ListCells(columns, separator))


def _several_labels(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer, data = load_tokenizer(recipe.backbone.model), recipe.data
    content = {"data.text": [data.text], "data.label": [data.label]}
    request = _with_lists(request, recipe, (data.label,))
    tables, left_out, read = _labelled(source, content, data.label, columns, request)
    labels, strata = number_strata(tables, _dividing(recipe, (data.text, data.label)))
    lists = {split: lists_of(tables[split], "data.label", data.label) for split in request.splits}
    names = list_names(tables, lists, request)
    examples = {}
    for split in request.splits:
        texts = texts_of(tables[split], "data.text", data.text)
        examples[split] = TargetedText(
            _tokenized(tables[split], texts, labels[split], tokenizer, data.max_length),
            several_hot(lists[split], names),
        )
    rows = _row_digests(read, [data.text, data.label], examples)
    found = _further_columns(tables, columns, request)
    reader = tokenizer_digest(tokenizer)
    return Splits(examples, found, names, strata, tokenizer.model_max_length, rows, reader, left_out)


def _numbers(recipe: Recipe, source: str, request: SplitRequest, columns: Sequence[str]) -> Splits:
    tokenizer, data = load_tokenizer(recipe.backbone.model), recipe.data
    names = tuple(data.targets or ())
    content = {"data.text": [data.text], "data.targets": list(names)}
    tables = read_tables(source, content, columns, request)
    labels, strata = number_strata(tables, _dividing(recipe, (data.text, *names)))
    examples = {}
    for split in request.splits:
        texts, targets = texts_of(tables[split], "data.text", data.text), numbers_of(tables[split], names)
        tokens = _tokenized(tables[split], texts, labels[split], tokenizer, data.max_length)
        examples[split] = TargetedText(tokens, targets)
    rows = _row_digests(tables, [data.text, *names, data.label], examples, names)
    found = _further_columns(tables, columns, request)
    return Splits(examples, found, names, strata, tokenizer.model_max_length, rows, tokenizer_digest(tokenizer))


def _tokenized(
    table: Table, texts: Sequence[str], labels: np.ndarray, tokenizer: Any, max_length: int
) -> TokenizedText:
    """Return the texts of a table, each with a token that the model can read."""
    examples = tokenize_texts(texts, labels, tokenizer, max_length)
    check_content(table.origin, examples, tokenizer)
    return examples


Loader = Callable[[Recipe, str, SplitRequest, Sequence[str]], Splits]

LOADERS: dict[str, Loader] = {
    "sequence-classification": _classified_texts,
    "image-classification": _images,
    "causal-lm": _completions,
    "token-classification": _tagged_words,
    "multi-label-classification": _several_labels,
    "regression": _numbers,
    "preference": _preferences,
}


def _labelled(
    source: str, content: Mapping[str, Sequence[str]], column: str, columns: Sequence[str], request: SplitRequest
) -> tuple[dict[str, Table], np.ndarray, dict[str, Table]]:
    """Return the tables of a task with labels in this column, `Splits.left_out`, and the tables as they were read."""
    tables = read_tables(source, content, columns, request)
    if not request.declared:
        return tables, np.zeros(0, dtype=bool), tables
    assert request.label_names is not None, "the recipe declares its labels"
    train, left_out = with_declared_labels(tables["train"], column, request.label_names)
    return {**{split: tables[split] for split in request.splits}, "train": train}, left_out, tables


def _row_digests(
    tables: Mapping[str, Table], bound: Sequence[str], examples: Mapping[str, Examples], numbers: Sequence[str] = ()
) -> dict[str, RowsDigest]:
    """Return the digests of what was read, over those of the columns `bound` that exist;
    `numbers` are read as numbers.
    """
    return {
        split: digest_of_rows(tables[split], [c for c in bound if c in tables[split].columns], made, numbers)
        for split, made in examples.items()
    }


def _images_of(table: Table, labels: np.ndarray, column: str, form: ImageFormat) -> ImageExamples:
    """Return a table's images as the model's image processor scales them."""
    pixels = read_pixels(table, column, form.size)
    return ImageExamples(pixels, torch.from_numpy(labels), form.mean, form.std, form.scale)


def _dividing(recipe: Recipe, answers: Sequence[str]) -> list[str]:
    """Return the columns whose values can be strata in a task without classes: `data.label`,
    then that of natural clients.
    """
    return [name for name in (recipe.data.label, recipe.partition.by) if name is not None and name not in answers]


def _further_columns(tables: Mapping[str, Table], columns: Sequence[str], request: SplitRequest) -> FurtherColumns:
    first = tables[request.splits[0]]  # only training rows need a natural client
    names = {column: names_of(first, column, "client", "partition.by") for column in columns}
    by = request.client
    owners = {split: owners_of(tables[split], by) for split in request.splits if by and by in tables[split].columns}
    return FurtherColumns(names, near_equal_notes("columns", first.columns), first.columns, owners)
