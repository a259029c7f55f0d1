"""Search the rate of FedIT as that of FFT-MoE was: `python benchmarks/fedit_rates.py --data ../shared/data`.

The defaults were chosen with FFT-MoE, and FedIT runs with the same rate. Here FedIT, with the same head and server, has
half of it, all and twice, beside FFT-MoE with the defaults. All figures are on training rows that are set aside. After
a stop the same command continues from its work folder, and `--seconds` stops it by itself.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from common import keep_comparison, markdown, places_of
from defaults import NUM_CLIENTS, SETS, values_of
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

RATES = (1e-3, 2e-3, 4e-3)
OURS = "FFT-MoE"
PARTITION = "dirichlet:0.1"
HEADER = ("set", OURS, *(f"FedIT, {rate:g}" for rate in RATES))
VARIANTS = (
    Variant(OURS),
    *(Variant(f"FedIT, {rate:g}", {"method": "fedit", "federation.learning_rate": rate}) for rate in RATES),
)


def row(name: str, cells: Sequence[CellResult]) -> list[str]:
    """The accuracy of each variant on the rows that are set aside."""
    found: Mapping[str, Any] = {cell.variant: cell for cell in cells if cell.status == "done"}
    return [name, *(f"{found[each].summary['accuracy']:.3f}" if each in found else "–" for each in HEADER[1:])]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places_of(parser, SETS, seeds=1, work="fedit-rates")
    parsed = parser.parse_args(arguments)
    parsed.clients = NUM_CLIENTS
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    rows = []
    for name in parsed.sets.split(","):
        comparison: Comparison = compare(
            values_of(name, parsed),
            parsed.work / name,
            variants=VARIANTS,
            partitions=[PARTITION],
            seeds=parsed.seeds,
            workers="auto",
            deadline=deadline,
            progress=Progress(Console()),
        )
        keep_comparison(parsed.work / name, parsed.results / f"fedit-rates-{name}.json")
        rows.append(row(name, comparison.cells))
        print(markdown(HEADER, rows), flush=True)


if __name__ == "__main__":
    main()
