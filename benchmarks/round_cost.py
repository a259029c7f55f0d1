"""Compare the time of a round with that of another checkout: `python benchmarks/round_cost.py OTHER_CHECKOUT`.

Two kinds of runs: `deployment` is the run of network.py over a server and four sites, on the loopback over TLS, and
`paper` is the recipe of that name without local training. Each pair runs this checkout and the other one, in turn, and
the next pair begins with the other of the two. A pair's ratio is the median round of this checkout divided by that of
the other. The first round, and rounds that measure, are left out. The load of the machine is noted before each pair.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checkouts import Checkout, paper_recipe, run_deployed, run_recipe, spelled_for
from common import RESULTS, machine, markdown, write_result
from network import NAMES, divide, recipe

THIS = Path(__file__).resolve().parents[1]
ROUNDS = 17  # of a deployment
PAPER = ("evaluation.local_only=false", "evaluation.every=12")
Pair = Mapping[str, Sequence[float]]  # the seconds of the rounds of "this" and "other"


def deployment(checkout: Checkout, name: str) -> list[float]:
    """Run the four sites once; the seconds of the rounds."""
    file = checkout.work / f"{name}.yaml"
    values = recipe(checkout.inputs, ROUNDS)
    values["data"]["source"] = str(checkout.inputs / "sites" / "server")
    file.write_text(json.dumps(spelled_for(values, checkout.source)))  # JSON is YAML
    return rounds_of(run_deployed(checkout, name, file, dict.fromkeys(NAMES, "all")))


def paper(checkout: Checkout, name: str) -> list[float]:
    """Run the recipe `paper` once; the seconds of the rounds."""
    changes = [flag for change in PAPER for flag in ("--set", change)]
    return rounds_of(run_recipe(checkout, name, paper_recipe(checkout), *changes))


KINDS: dict[str, Callable[[Checkout, str], list[float]]] = {"deployment": deployment, "paper": paper}


def rounds_of(folder: Path) -> list[float]:
    """The seconds of each round of a run, without the first and the last one."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds"] - before["seconds"] for before, row in itertools.pairwise(rows)][1:-1]


def ratios(pairs: Sequence[Pair]) -> list[float]:
    """The median round of this checkout divided by the other's, for each pair."""
    return [statistics.median(pair["this"]) / statistics.median(pair["other"]) for pair in pairs]


def table_row(kind: str, pairs: Sequence[Pair]) -> list[str]:
    """The kind, the median round of each checkout, and the median ratio with its range over the pairs."""
    own = [statistics.median([statistics.median(pair[name]) for pair in pairs]) for name in ("other", "this")]
    found = sorted(ratios(pairs))
    spread = f"{statistics.median(found):.3f} ({found[0]:.3f} to {found[-1]:.3f})"
    return [kind, *(f"{seconds:.3f}" for seconds in own), spread, str(len(pairs))]


def measure(checkouts: Mapping[str, Checkout], kind: str, number: int) -> dict[str, Any]:
    """Run one pair; the seconds of its rounds, and the load of the machine before it."""
    order = [*checkouts][:: 1 if number % 2 == 0 else -1]
    load = os.getloadavg()[0]
    seconds: dict[str, Any] = {}
    for name in order:
        seconds[name] = KINDS[kind](checkouts[name], f"{kind}-{number}")
        shutil.rmtree(checkouts[name].work / f"{kind}-{number}")
    return {**seconds, "load": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="top folder of the other checkout")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS / "round_cost.json")
    parsed = parser.parse_args()
    describe = ["git", "-C", str(parsed.other), "rev-parse", "--short", "HEAD"]
    other = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    found: dict[str, Any] = json.loads(parsed.results.read_text())["kinds"] if parsed.results.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        divide(work / "inputs" / "sites")
        sources = {"this": THIS, "other": parsed.other.resolve()}
        checkouts = {key: Checkout.prepare(own, work / "inputs", work / key) for key, own in sources.items()}
        for kind in parsed.kinds:
            pairs: list[dict[str, Any]] = []
            for number in range(parsed.pairs):
                pairs.append(measure(checkouts, kind, number))
                print(f"{kind}: {ratios(pairs)[-1]:.3f} at a load of {pairs[-1]['load']:.1f}", flush=True)
                found[kind] = {"machine": machine(), "other": other, "pairs": pairs}
                write_result(parsed.results, {"kinds": found}, "kinds")
    header = ["run", f"a round of {other}, s", "a round now, s", "ratio", "pairs"]
    print(markdown(header, [table_row(kind, found[kind]["pairs"]) for kind in parsed.kinds]))


if __name__ == "__main__":
    main()
