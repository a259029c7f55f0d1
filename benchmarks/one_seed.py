"""Print the accuracies of one seed of a grid: `python benchmarks/one_seed.py [--seed 0]`. The script runs nothing.

It also prints what each client's own subset of experts adds to the global model, on the same test rows. A last table
gives the accuracy of clients' models without sharing, on the clients' own labels.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import RESULTS, markdown

Cells = Mapping[tuple[str, str, str], Mapping[str, Any]]  # by data set, variant and partition

PERSONAL = ("fedsa-lora", "local-only")


def done(lines: list[dict[str, Any]], seed: int) -> Cells:
    """The finished cells of this seed, in the order in which they were written."""
    chosen = (line for line in lines if line["status"] == "done" and line["seed"] == seed)
    return {(line["data"], line["variant"], line["partition"]): line for line in chosen}


def accuracy_table(cells: Cells, data: str, partitions: list[str]) -> str:
    """Accuracy on the whole test set of one data set; a dash where no cell has finished."""
    variants = dict.fromkeys(variant for name, variant, _ in cells if name == data)
    rows = [
        (v, *(f"{cells[data, v, p]['accuracy']:.3f}" if (data, v, p) in cells else "–" for p in partitions))
        for v in variants
    ]
    return markdown((data, *partitions), rows)


def personal_table(cells: Cells, partitions: list[str]) -> str:
    """Each client's own model minus the global one, on the client's own labels, mean over the clients."""
    measured = {key: cell["personal_accuracy"] for key, cell in cells.items() if cell.get("personal_accuracy")}

    def entry(key: tuple[str, str, str]) -> str:
        if "global_mean" not in measured.get(key, {}):
            return "–"
        own, shared = measured[key]["mean"], measured[key]["global_mean"]
        return f"{own:.3f} − {shared:.3f} = {own - shared:+.3f}"

    places = dict.fromkeys((data, variant) for data, variant, _ in measured)
    rows = [(f"{data}, {variant}", *(entry((data, variant, p)) for p in partitions)) for data, variant in places]
    return markdown(("own model minus the global one", *partitions), rows)


def own_table(cells: Cells, partitions: list[str]) -> str:
    """For methods with a model for each client: its accuracy on the client's own labels, mean over the clients."""
    found = {key: cell["client_accuracy"]["mean"] for key, cell in cells.items() if cell["method"] in PERSONAL}
    places = dict.fromkeys((data, variant) for data, variant, _ in found)
    rows = [
        (f"{d}, {v}", *(f"{found[d, v, p]:.3f}" if (d, v, p) in found else "–" for p in partitions)) for d, v in places
    ]
    return markdown(("own model, own labels", *partitions), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS / "grid-committed.json")
    parsed = parser.parse_args()
    cells = done(json.loads(parsed.results.read_text())["cells"], parsed.seed)
    partitions = list(dict.fromkeys(partition for _, _, partition in cells))
    for data in dict.fromkeys(name for name, _, _ in cells):
        print(accuracy_table(cells, data, partitions), end="\n\n")
    print(personal_table(cells, partitions), end="\n\n")
    if any(cell["method"] in PERSONAL for cell in cells.values()):
        print(own_table(cells, partitions))


if __name__ == "__main__":
    main()
