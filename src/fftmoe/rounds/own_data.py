"""States what clients have on their own data: by training alone, with the common model, and with personal answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def own_data(
    listed: Mapping[str, Sequence[Any]], metric: str, higher_is_better: bool, has_common: bool = True
) -> dict[str, Any]:
    """Return `own_data` of the summary, from the values of clients that it lists; empty where it lists none.

    Args:
        listed: by key, a value for each client: the metric of the common model, `personal` and `alone`, where these
            are known.
        metric: the key of the first. higher_is_better: of the metric.
        has_common: whether there is a common model; otherwise the first values are those of clients' own ones.

    Returns:
        `alone`, `global` (or `own_model`) and `personal`, each with its `mean` and its `worst` over the clients that
        have it; and `gain_over_alone`, over those of which both are known: by how much the personal answer is better,
        or the model where nobody has personal answers (`mean`, `worst`), and the `share_of_clients` that lose nothing.
    """
    model = "global" if has_common else "own_model"
    values = {
        name: np.array([np.nan if value is None else value for value in listed[key]])
        for name, key in (("alone", "alone"), (model, metric), ("personal", "personal"))
        if key in listed
    }
    found: dict[str, Any] = {
        name: {"mean": float(known.mean()), "worst": float(known.min() if higher_is_better else known.max())}
        for name, own in values.items()
        if len(known := own[~np.isnan(own)])
    }
    answers = values.get("personal", values.get(model))
    if "alone" not in found or answers is None:
        return found
    gain = (answers - values["alone"]) * (1 if higher_is_better else -1)
    gain = gain[~np.isnan(gain)]
    if len(gain):
        share = float((gain >= 0).mean())
        found["gain_over_alone"] = {
            "mean": float(gain.mean()),
            "worst": float(gain.min()),
            "share_of_clients": share,
            "num_clients": len(gain),
        }
    return found
