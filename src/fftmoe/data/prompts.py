"""Texts for a language model from where they are: prompts with completions, or texts alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fftmoe.data.sources import WHOLE, Wanted, texts_of
from fftmoe.data.strata import stratified_tables


@dataclass(frozen=True)
class PromptSplit:
    """Examples of one split.

    Attributes:
        where: they came from, for messages.
        texts: N texts that are learned, none empty: completions where there are prompts.
        prompts: N prompts; None where there are none.
        labels: int64 [N], indices into the strata's names.
        columns: further columns by name, N values each.
    """

    where: str
    texts: tuple[str, ...]
    prompts: tuple[str, ...] | None
    labels: np.ndarray
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)


def load_prompts(
    source: str,
    *,
    text: str = "text",
    prompt: str | None = None,
    completion: str | None = None,
    strata: Sequence[str] = (),
    extra_columns: Sequence[str] = (),
    wanted: Wanted = WHOLE,
) -> tuple[dict[str, PromptSplit], tuple[str, ...]]:
    """Read a data set for a language model.

    Args:
        source: as `load_source`.
        text: the column with the texts, where there are no prompts.
        prompt, completion: the columns with prompts and completions.
        strata: columns of which the first that every split has divides the examples into strata.
        extra_columns: further columns to keep, which the first needed split must have.

    Returns:
        the splits by name, and the strata's names, those of all splits, sorted.

    Raises:
        InputError: the source, a file or a column is missing, or a text is empty.
    """
    learned = ("data.text", text) if completion is None else ("data.completion", completion)
    content = dict([learned] if prompt is None else [("data.prompt", prompt), learned])
    tables, labels, names = stratified_tables(
        source, {key: [column] for key, column in content.items()}, [*content.values()], strata, extra_columns, wanted
    )
    splits = {
        name: PromptSplit(
            where=table.where,
            texts=texts_of(table, *learned),
            prompts=None if prompt is None else texts_of(table, "data.prompt", prompt),
            labels=labels[name],
            columns={column: list(table.rows[column]) for column in extra_columns if column in table.rows.column_names},
        )
        for name, table in tables.items()
    }
    return splits, names
