"""Makes `comparison.json`: the statistics of a comparison, and the numbers of every cell."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fftmoe.comparison.statistics import (
    CellResult,
    Comparison,
    cost_to_target,
    curve,
    each_once,
    estimate,
    metric_of,
    numbers,
    over_grid,
    own_key,
    paired_differences,
    retained,
    select,
    target_value,
)

COMPARISON_SCHEMA = 2


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return the contents of `comparison.json`: the statistics, then every cell."""
    cells, metric = comparison.cells, metric_of(comparison.cells)
    partitions = each_once(cell.partition for cell in cells)
    rows = {}
    for variant in each_once(cell.variant for cell in cells):
        to_target = {}
        for place in partitions:
            target = target_value(comparison, variant, place)
            cost = None if target is None else cost_to_target(curve(cells, variant, place), target, metric)
            to_target[place] = {"target": target, "cost": _values(cost)}
        rows[variant] = {
            "by_partition": {
                place: _values(estimate(numbers(select(cells, variant, place), metric.name))) for place in partitions
            },
            "over_partitions": _values(over_grid(cells, variant, metric.name)),
            "iid_retained": _values(retained(cells, variant)),
            "worst_decile": _values(over_grid(cells, variant, own_key(metric), "worst_decile")),
            "to_target": to_target,
        }
    return {
        "schema_version": COMPARISON_SCHEMA,
        "name": comparison.name,
        "metric": metric.name,
        "target": comparison.target,
        "variants": rows,
        "paired_differences": [asdict(found) for found in paired_differences(cells)],
        "cells": [{key: value for key, value in asdict(cell).items() if key != "data"} for cell in cells],
    }


def comparison_of(values: Mapping[str, Any]) -> Comparison:
    """Return the comparison that a `comparison.json` describes, to render its page again.

    Raises:
        ValueError: the values do not describe a comparison.
    """
    try:
        cells = tuple(CellResult(**cell) for cell in values["cells"])
        return Comparison(values["name"], cells, values["target"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"it is not a comparison: {type(error).__name__}: {error}") from error


def _values(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
