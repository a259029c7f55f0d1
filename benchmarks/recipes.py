"""Run two measured recipes, IID and skewed, over several seeds: `python benchmarks/recipes.py --data ../shared/data`.

Each runs with its own closed-form head, and with a head that clients train and the server averages.

`--data` is a folder with `banking77/` and `ag_news/` (train and test parquet); without it the hub is used.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from common import RESULTS, TRAINED_HEAD, Results, as_measured, column, markdown, mean_and_spread

PARTITIONS = {
    "IID": ["partition.kind=iid", "partition.alpha=null"],
    "Dirichlet 0.1": ["partition.kind=dirichlet", "partition.alpha=0.1"],
}
HEADS = {"solved": [], "trained": [TRAINED_HEAD]}
FOLDERS = {"banking77": "banking77", "agnews": "ag_news"}


COLUMNS = {
    "accuracy": ("accuracy",),
    "at k = 1": ("accuracy_by_tier", "small"),
    "client mean": ("client_accuracy", "mean"),
    "client worst decile": ("client_accuracy", "worst_decile"),
}


def row(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table row of the finished seeds."""
    accuracies = [mean_and_spread(column(runs, *path)) for path in COLUMNS.values()]
    sent = statistics.fmean(column(runs, "bytes_up")) / 2**20
    return [str(len(runs)), *accuracies, f"{sent:.0f}", f"{statistics.fmean(column(runs, 'seconds')):.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = Results(RESULTS / "recipes.json")
    cells = list(product(FOLDERS, PARTITIONS, HEADS))
    # Seed by seed, so that a call that is stopped has compared everything it has run.
    for seed, (recipe, partition, head) in product(range(arguments.seeds), cells):
        source = [f"data.source={arguments.data / FOLDERS[recipe]}"] if arguments.data else []
        overrides = [*source, *PARTITIONS[partition], *HEADS[head], f"seed={seed}"]
        results.run(f"{recipe}, {partition}, {head}, seed {seed}", as_measured(recipe), overrides)
    rows = []
    for cell in cells:
        name = ", ".join(cell)
        rows.append([*cell, *row([run["summary"] for key, run in results.runs.items() if key.startswith(name + ",")])])
    print(markdown(["recipe", "partition", "head", "seeds", *COLUMNS, "MiB up", "seconds"], rows))


if __name__ == "__main__":
    main()
