"""Finished cells made by hand, a small grid, and a check of refused commands."""

from typing import Any

from fftmoe.comparison.statistics import CellResult
from shared_fixtures import Outcome


def with_grid(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with a `compare:` section: two seeds, two partitions and two heads."""
    section = {"heads": ["averaged", "one-vs-all"], "partitions": ["iid", "shards:1"], "seeds": 2}
    return {**recipe, "compare": section}


def cell(variant: str, partition: str, seed: int, accuracy: float | None, **more: Any) -> CellResult:
    """A cell with this accuracy after round 2, and those of `early` after rounds 0 and 1; None is a failed cell."""
    method, _, head = variant.partition("+")
    if accuracy is None:
        return CellResult(variant, method, head, partition, seed, "failed", reason="out of luck")
    rows = [
        {"round": t, "accuracy": a, "bytes_up": 100 * t, "bytes_down": 200 * t, "client_seconds": 10.0 * t + seed}
        for t, a in enumerate((*more.pop("early", (0.1, 0.2)), accuracy))
    ]
    last = {key: rows[-1][key] for key in ("bytes_up", "bytes_down", "client_seconds")}
    summary = {
        "accuracy": accuracy,
        "client_accuracy": {"mean": accuracy, "worst_decile": accuracy / 2},
        **last,
        **more,
    }
    return CellResult(variant, method, head, partition, seed, "done", summary, rows)


GRID = (
    cell("fft-moe+h", "iid", 0, 0.8),
    cell("fedit+h", "iid", 0, 0.9),
    cell("fft-moe+h", "shards:1", 0, 0.7, early=(0.1, 0.5)),
    cell("fedit+h", "shards:1", 0, 0.5),
    cell("fft-moe+h", "iid", 1, 0.9),
    cell("fedit+h", "iid", 1, 0.8),
    cell("fft-moe+h", "shards:1", 1, 0.5, early=(0.1, 0.5)),
    cell("fedit+h", "shards:1", 1, 0.4),
)


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("fftmoe: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
