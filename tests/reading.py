"""Labelled data sets as tests look at them: the contents, the labels and further columns of every split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fftmoe.data import Table, names_of, number_classes, read_pixels, read_tables, texts_of


@dataclass(frozen=True)
class Rows:
    """The rows of one split: N texts or pixels [N, 3, H, W], labels int64 [N], further columns of N values each."""

    content: Any
    labels: np.ndarray
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Labelled:
    """All splits of a source, and the names of its classes."""

    splits: dict[str, Rows]
    label_names: tuple[str, ...]


def read_labelled_texts(
    source: str, text: str = "text", label: str = "label", extra_columns: Sequence[str] = ()
) -> Labelled:
    """Every split of a text classification data set."""
    return _read(source, "data.text", text, label, extra_columns, lambda table: texts_of(table, "data.text", text))


def read_labelled_images(
    source: str, size: tuple[int, int], image: str = "image", label: str = "label", extra_columns: Sequence[str] = ()
) -> Labelled:
    """Every split of an image classification data set."""
    return _read(source, "data.image", image, label, extra_columns, lambda table: read_pixels(table, image, size))


def _read(
    source: str,
    key: str,
    column: str,
    label: str,
    extra_columns: Sequence[str],
    content: Callable[[Table], Any],
) -> Labelled:
    tables = read_tables(source, {key: [column], "data.label": [label]}, extra_columns)
    labels, names = number_classes(tables, label)
    rows = {
        split: Rows(
            content(table),
            labels[split],
            {name: names_of(table, name, "client", "partition.by") for name in extra_columns},
        )
        for split, table in tables.items()
    }
    return Labelled(rows, names)
