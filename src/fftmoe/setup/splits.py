"""What every kind of data comes to."""

from dataclasses import dataclass
from typing import Any

from fftmoe.data import Examples


@dataclass(frozen=True)
class Splits:
    """Splits of a source, ready for the model, and the further columns of each; the rest as `Loaded`."""

    examples: dict[str, Examples]
    columns: dict[str, dict[str, list[Any]]]
    label_names: tuple[str, ...]
    max_length: int | None
    strata: tuple[str, ...]
