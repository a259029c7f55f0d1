"""The shipped recipes, IID and skewed, over several seeds: `python benchmarks/recipes.py --data ../shared/data`.

`--data` is a folder that holds `banking77/` and `ag_news/` (train and test parquet); without it the hub is used.
"""

import argparse
from pathlib import Path

from common import RESULTS, Results, column, markdown, mean_and_spread

PARTITIONS = {
    "IID": ["partition.kind=iid", "partition.alpha=null"],
    "Dirichlet 0.1": ["partition.kind=dirichlet", "partition.alpha=0.1"],
}
FOLDERS = {"banking77": "banking77", "agnews": "ag_news"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = Results(RESULTS / "recipes.json")
    rows = []
    for recipe, folder in FOLDERS.items():
        source = [f"data.source={arguments.data / folder}"] if arguments.data else []
        for partition, overrides in PARTITIONS.items():
            runs = [
                results.run(f"{recipe}, {partition}, seed {seed}", recipe, [*source, *overrides, f"seed={seed}"])
                for seed in range(arguments.seeds)
            ]
            rows.append(
                [
                    recipe,
                    partition,
                    mean_and_spread(column(runs, "accuracy")),
                    mean_and_spread(column(runs, "accuracy_by_tier", "small")),
                    mean_and_spread(column(runs, "client_accuracy", "mean")),
                    mean_and_spread(column(runs, "client_accuracy", "worst_decile")),
                    f"{sum(column(runs, 'bytes_up')) / len(runs) / 2**20:.0f}",
                    f"{sum(column(runs, 'seconds')) / len(runs):.0f}",
                ]
            )
    header = ["recipe", "partition", "accuracy", "at k = 1", "client mean", "client worst decile", "MiB up", "seconds"]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
