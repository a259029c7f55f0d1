"""Check the goals of docs/results.md against the numbers of the grid: `python benchmarks/goals.py`, which runs nothing.

Everything is computed from the committed cells of `--results`, over the data sets and seeds that have all the cells a
figure needs. The output says how many those are.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common import RESULTS, markdown
from fftmoe.comparison.statistics import (
    IID,
    CellResult,
    Estimate,
    cost_to_target,
    curve,
    each_once,
    estimate,
    metric_of,
    paired_differences,
)
from fftmoe.comparison.tables import with_interval
from fftmoe.report.metric import NO_VALUE
from grid_results import read_cells

OURS, BASELINE, CENTRAL = "fft-moe", "fedit", "centralized"
SKEWED = ("shards:2", "shards:1", "bernoulli-dirichlet:0.5:0.3")
KEPT, GAP, PART = 0.98, 0.01, 0.5  # the goals: IID accuracy kept, distance to centralized, part of fedit's cost

Row = tuple[str, ...]
Accuracies = Mapping[tuple[str, int, str, str], float]  # (data, seed, variant, partition)


def accuracies(cells: Sequence[CellResult]) -> Accuracies:
    """Return the accuracy of every finished cell."""
    done = (cell for cell in cells if cell.status == "done")
    return {(c.data, c.seed, c.variant, c.partition): float(c.summary["accuracy"]) for c in done}


def kept(known: Accuracies, variant: str) -> Estimate | None:
    """Return mean accuracy over the skewed partitions / IID accuracy, over data sets and seeds."""
    ratios = []
    for data, seed, name, partition in known:
        if (name, partition) == (variant, IID):
            skewed = [known.get((data, seed, variant, p)) for p in SKEWED]
            if (found := [value for value in skewed if value is not None]) and len(found) == len(SKEWED):
                ratios.append(statistics.fmean(found) / known[data, seed, variant, IID])
    return estimate(ratios)


def gap(known: Accuracies, head: str) -> Estimate | None:
    """Return centralized minus federated accuracy of the same adapter and head, IID."""
    return estimate(
        [
            known[data, seed, name, IID] - known[data, seed, f"{OURS}+{head}", IID]
            for data, seed, name, partition in known
            if (name, partition) == (f"{CENTRAL}+{head}", IID) and (data, seed, f"{OURS}+{head}", IID) in known
        ]
    )


def costs(cells: Sequence[CellResult], variant: str, target_of: str) -> Iterator[tuple[float, float] | None]:
    """Return, by data set and partition, rounds and bytes to the accuracy of `target_of`, as shares of its own."""
    for data in each_once(cell.data for cell in cells):
        own = [cell for cell in cells if cell.data == data]
        for partition in each_once(cell.partition for cell in own):
            theirs, ours = (curve(own, name, partition) for name in (target_of, variant))
            if theirs and ours:
                last = theirs[-1]
                point = cost_to_target(ours, last.value, metric_of(cells))
                yield None if point is None else (point.round / last.round, point.bytes / last.bytes)


def cost_row(cells: Sequence[CellResult], variant: str, target_of: str) -> Row:
    """How often half of the baseline's rounds and bytes were enough, and the medians where its accuracy was reached."""
    name, found = f"{variant} to the final accuracy of {target_of}", list(costs(cells, variant, target_of))
    reached = [cost for cost in found if cost is not None]
    halves = sum(rounds <= PART and size <= PART for rounds, size in reached)
    rounds, size = (f"{statistics.median(cost[i] for cost in reached):.2f}" if reached else NO_VALUE for i in (0, 1))
    return (name, f"{len(reached)} of {len(found)}", rounds, size, f"{halves} of {len(found)}")


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "not measured"}[met]


def goal_rows(cells: Sequence[CellResult], head: str) -> list[Row]:
    """Return the goals on accuracy, for our variant with this head."""
    known, variant = accuracies(cells), f"{OURS}+{head}"
    share, distance = kept(known, variant), gap(known, head)
    others = [d for d in paired_differences(cells) if d.reference == variant and not d.other.startswith(CENTRAL)]
    ahead = [d for d in others if d.estimate.half_width is not None and d.estimate.mean > d.estimate.half_width]
    behind = [d for d in others if d.estimate.half_width is not None and d.estimate.mean < -d.estimate.half_width]
    counts = f"above {len(ahead)}, level with {len(others) - len(ahead) - len(behind)}, below {len(behind)}"
    return [
        (
            f"{variant} keeps {KEPT:.0%} of its IID accuracy on shard-2, shard-1 and Bernoulli-Dirichlet",
            with_interval(share),
            _n(share),
            _verdict(None if share is None else share.mean >= KEPT),
        ),
        (
            f"{variant} is within {GAP} of centralized training, IID",
            with_interval(distance, "+.3f"),
            _n(distance),
            _verdict(None if distance is None else distance.mean <= GAP),
        ),
        (
            f"{variant} is above every other method with this head by more than the interval",
            counts,
            str(max((d.estimate.n for d in others), default=0)),
            _verdict(None if not others else len(ahead) == len(others)),
        ),
    ]


def _n(found: Estimate | None) -> str:
    return NO_VALUE if found is None else str(found.n)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "grid-committed.json")
    parser.add_argument("--seed", type=int, help="use only this seed; default: all")
    parsed = parser.parse_args(arguments)
    cells = [cell for cell in read_cells(parsed.results) if parsed.seed in (None, cell.seed)]
    heads = each_once(cell.head for cell in cells if cell.method == OURS)
    rows = [row for head in heads for row in goal_rows(cells, head)]
    print(markdown(("goal", "measured", "pairs or seeds", ""), rows))
    known = accuracies(cells)
    shares = [(variant, with_interval(kept(known, variant))) for variant in each_once(cell.variant for cell in cells)]
    print(f"\n{markdown(('IID accuracy kept on ' + ', '.join(SKEWED), ''), shares)}")
    pairs = [(f"{OURS}+{head}", f"{BASELINE}+{other}") for other in heads for head in heads]
    header = ("cost, as parts of the baseline's", "reached", "rounds, median", "bytes, median", "half of both enough")
    print(f"\n{markdown(header, [cost_row(cells, ours, theirs) for ours, theirs in pairs])}")
    done = sum(cell.status == "done" for cell in cells)
    print(f"\n{done} of {len(cells)} cells")


if __name__ == "__main__":
    main()
