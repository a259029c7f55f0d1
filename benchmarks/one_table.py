"""Print the table with which docs/results.md begins: `python benchmarks/one_table.py`. The script runs nothing.

A figure is the mean accuracy over the partitions with label skew, and over the seeds, with its 95 % interval over the
seeds. Everything comes from the committed cells of `benchmarks/results`.
"""

import statistics
from collections.abc import Sequence

from common import RESULTS, markdown
from fftmoe.comparison.statistics import IID, CellResult, each_once, estimate, select
from fftmoe.comparison.tables import with_interval
from grid_results import read_cells

FILES = ("grid-committed.json", "grid-final.json")
NAMES = {"trec6": "TREC-6", "hwu64": "HWU64", "pacs32": "pacs32", "snips": "SNIPS"}
ROWS = {
    "local-only+averaged": "each client trains alone",
    "fedit+averaged": "FedIT as published (LoRA, averaged head)",
    "head-only+closed-form": "no adapter, closed-form head",
    "fedit+closed-form": "FedIT with a closed-form head",
    "fft-moe+closed-form": "**FFT-MoE with a closed-form head**",
    "centralized+closed-form": "all data in one place, closed-form head",
}


def under_skew(cells: Sequence[CellResult], data: str, variant: str) -> str:
    """The mean over the skewed partitions, with its interval over the seeds; centralized training has no partition."""
    own = [cell for cell in select(cells, variant) if cell.data == data]
    skewed = [cell for cell in own if cell.partition != IID] or own
    means = [
        statistics.fmean(float(cell.summary["accuracy"]) for cell in skewed if cell.seed == seed)
        for seed in each_once(cell.seed for cell in skewed)
    ]
    return with_interval(estimate(means))


def table(cells: Sequence[CellResult]) -> str:
    """One row for each way to train, one column for each data set."""
    rows = [(label, *(under_skew(cells, data, variant) for data in NAMES)) for variant, label in ROWS.items()]
    return markdown(("mean accuracy under label skew", *NAMES.values()), rows)


if __name__ == "__main__":
    print(table([cell for file in FILES for cell in read_cells(RESULTS / file)]))
