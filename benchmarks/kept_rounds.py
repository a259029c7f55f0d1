r"""Which round each rule would keep, in the runs that `defaults.py` has made: `python benchmarks/kept_rounds.py`.

    python benchmarks/defaults.py --data ../shared/data --models ../shared/models --variants "the defaults" \
        --partitions dirichlet:0.1,shards:1 --seeds 2
    python benchmarks/kept_rounds.py

A rule sees what the clients measured on the rows that they set aside, a tenth of their own. The figures are on 800
other training rows, which no client has; no test row is looked at. The script runs nothing.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, machine, markdown, write_result
from fftmoe.store.ranking import BAR, Ranking

Rows = Sequence[Mapping[str, Any]]
METRIC = "accuracy"
ON_CLIENTS_ROWS = Ranking("validation_accuracy", higher_is_better=True, error="validation_standard_error")


def rounds_by_rule(rows: Rows) -> dict[str, int]:
    """The round that each rule keeps, of the rounds in which the clients measured the model."""
    measured = [{name: value for name, value in row.items() if name != BAR} for row in rows]
    best = ON_CLIENTS_ROWS.best(measured)
    start, highest = (next(row for row in measured if row["round"] == round) for round in (0, best))
    bar = highest[ON_CLIENTS_ROWS.metric] - highest[ON_CLIENTS_ROWS.error]
    within = [row["round"] for row in measured if row[ON_CLIENTS_ROWS.metric] >= bar]
    return {
        "before the first round": start["round"],
        "the last": measured[-1]["round"],
        "the best": int(best or 0),
        "the last within an error of the best": within[-1],
        "… and no worse than before the first": ON_CLIENTS_ROWS.ranked(measured)[0],
    }


def runs(work: Path) -> Iterator[tuple[str, Rows]]:
    """The name of each run that has ended, and the rows of the rounds in which its clients measured the model."""
    for summary in sorted(work.glob("*/cells/**/summary.json")):
        lines = [json.loads(line) for line in (summary.parent / "metrics.jsonl").read_text().splitlines()]
        name = "/".join(summary.parent.relative_to(work).parts).replace("/cells/", ": ").replace("/the-defaults", "")
        yield name, [row for row in lines if row.get(ON_CLIENTS_ROWS.metric) is not None]


def found(rows: Rows) -> dict[str, float]:
    """By rule, the metric of the round that it keeps, on rows that no client has."""
    values = {row["round"]: row[METRIC] for row in rows}
    return {rule: values[round] for rule, round in rounds_by_rule(rows).items()}


def table(found_by_run: Mapping[str, Mapping[str, float]]) -> str:
    """The rules side by side: a row for each run, then the mean and the least gain over the start, in points."""
    rules = list(next(iter(found_by_run.values())))
    rows = [[name, *(f"{values[rule]:.3f}" for rule in rules)] for name, values in found_by_run.items()]
    for title, of in (("mean", statistics.fmean), ("least gain over the start", min)):
        less = {rule: [v[rule] - (v[rules[0]] if of is min else 0) for v in found_by_run.values()] for rule in rules}
        rows.append([title, *(f"{of(values):.3f}" for values in less.values())])
    return markdown(("run", *rules), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs") / "defaults", help="the work folder of defaults.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    by_run = dict(runs(given.work))
    outcome = {name: {"rounds": rounds_by_rule(rows), METRIC: found(rows)} for name, rows in by_run.items()}
    write_result(given.results / "kept_rounds.json", {"machine": machine(), "runs": outcome}, "runs")
    print(table({name: values[METRIC] for name, values in outcome.items()}))


if __name__ == "__main__":
    main()
