"""From a recipe to texts with more than one answer each: numbers, several labels, or a tag for every word."""

from collections.abc import Sequence

from fftmoe.backbones import load_tokenizer
from fftmoe.config import Recipe
from fftmoe.data import (
    Examples,
    TargetedText,
    Wanted,
    lists_of,
    names_of,
    numbers_of,
    several_hot,
    stratified_tables,
    texts_of,
    tokenize_tagged,
    tokenize_texts,
)
from fftmoe.setup.splits import Splits


def load_targeted(recipe: Recipe, source: str, wanted: Wanted, columns: Sequence[str]) -> Splits:
    """The wanted splits of a source for the tasks of `TARGETED`.

    They are divided by `data.label`, where that is not itself what is asked for, or by the natural client where the
    data has no such column.

    Raises:
        InputError: the data or the model cannot be read.
    """
    tokenizer, section, task = load_tokenizer(recipe.backbone.model), recipe.data, recipe.backbone.task
    content, texts = _content(recipe)
    asked = [column for own in content.values() for column in own]
    dividing = [name for name in (section.label, recipe.partition.by) if name is not None and name not in asked]
    tables, strata, strata_names = stratified_tables(source, content, texts, dividing, columns, wanted)
    own = {name: tables[name] for name in wanted.needed}
    names = tuple(section.targets or ())
    lists = {}
    if task != "regression":
        ((key, (column,)),) = [(k, v) for k, v in content.items() if k in ("data.tags", "data.label")]
        lists = {name: lists_of(table, key, column) for name, table in own.items()}
        names = names_of({name: {table.where: lists[name]} for name, table in own.items()}, wanted)
    examples: dict[str, Examples] = {}
    for name, table in own.items():
        if task == "token-classification":
            words = lists_of(table, "data.tokens", section.tokens)
            examples[name] = tokenize_tagged(
                table.where, words, lists[name], names, strata[name], tokenizer, section.max_length
            )
        else:
            texts = texts_of(table, "data.text", section.text)
            targets = numbers_of(table, names) if task == "regression" else several_hot(lists[name], names)
            found = tokenize_texts(texts, strata[name], tokenizer, section.max_length)
            examples[name] = TargetedText(found, targets)
    further = {name: {c: list(t.rows[c]) for c in columns if c in t.rows.column_names} for name, t in own.items()}
    return Splits(examples, further, names, tokenizer.model_max_length, strata_names)


def _content(recipe: Recipe) -> tuple[dict[str, list[str]], list[str]]:
    """The columns with the examples by the recipe's key for them, and those of them that hold texts."""
    section = recipe.data
    if recipe.backbone.task == "token-classification":
        return {"data.tokens": [section.tokens], "data.tags": [section.tags]}, []
    if recipe.backbone.task == "regression":
        return {"data.text": [section.text], "data.targets": list(section.targets or ())}, [section.text]
    return {"data.text": [section.text], "data.label": [section.label]}, [section.text]


TARGETED = ("token-classification", "multi-label-classification", "regression")
