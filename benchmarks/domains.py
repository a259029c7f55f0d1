"""Compare methods on domains: `python benchmarks/domains.py --data ../shared/data --models ../shared/models`.

Each client has one domain: in flan8 a kind of instruction, in shakespeare a role, in pacs32 a style of drawing. The
recipes are those in `recipes/measured/`, with fewer rounds. FFT-MoE combines routed experts with a shared part: an
update of all linear layers, or one of query and value, with or without a shared expert. LoRA adapts query and value or
all linear layers, with one rank or with the rank of each tier. A last variant has one dense expert with as many
parameters as the experts of the smallest tier; it shows whether routing helps. The figures are on held-out training
rows, so that they may be used to choose settings. `--scale full`, for a larger machine, runs the complete recipes with
all methods over five seeds, and measures on the test rows. After a stop the same command continues from its work
folder.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from common import RESULTS, as_measured, keep_comparison, markdown
from fftmoe.comparison.run import compare
from fftmoe.comparison.tables import tables
from fftmoe.config import read_recipe
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

RECIPES = {"flan8": "stories260k", "shakespeare": "stories260k", "pacs32": "vit-cifar10"}
WHOLE = {"evaluation.every": 5, "evaluation.max_examples": None, "evaluation.generate": None}
SHORTER = WHOLE | {"federation.rounds": 10, "data.validation_examples": 400}
SCALES = {"committed": (SHORTER, 3), "full": (WHOLE, 5)}  # what a recipe is changed by, and how many seeds
OTHERS = ("ffa-lora", "flora", "flexlora", "fedsa-lora", "flame", "local-only", "centralized")  # of the full scale
EXPERTS = {"small": 4, "medium": 8, "large": 16}
RANKS = {"flan8": 8, "shakespeare": 8, "pacs32": 11}  # of all linear layers: about the cost of the others' shared parts
ATTENTION = {"adapter.shared_targets": "query-value", "adapter.shared_rank": 16, "lora.targets": "query-value"}
ALL_LINEAR = {"lora.targets": "all-linear"}
DENSE = {
    "adapter.num_experts": 1,
    "adapter.expert_dim": 64,
    "budgets": [{"name": "all", "fraction": 1, "top_k": 1, "experts": 1}],
}


def variants(recipe: str, scale: str) -> tuple[Variant, ...]:
    """Return variants of equal cost per tier; in `fedit` and the dense expert, all clients cost as the smallest."""
    tiers = read_recipe(as_measured(recipe))[0]["budgets"]
    # What three experts of every tier would cost goes into what all share.
    fewer = ATTENTION | {
        "budgets": [tier | {"experts": EXPERTS[tier["name"]] - 3} for tier in tiers],
        "federation.aggregation": "fedavg",
    }
    linear = {"adapter.shared_targets": "all-linear", "adapter.shared_rank": RANKS[recipe], "adapter.shared_dim": 0}
    routed = ATTENTION | {
        "adapter.shared_dim": 0,
        "budgets": [tier | {"experts": EXPERTS[tier["name"]]} for tier in tiers],
        "federation.aggregation": "per-expert",
    }
    others = OTHERS if scale == "full" else ()
    return (
        Variant("fft-moe, all linear layers shared", fewer | linear),
        Variant("fft-moe, a shared expert and routed ones", fewer | {"adapter.shared_dim": 48}),
        Variant("fft-moe, routed experts alone", routed),
        Variant("one dense expert", routed | DENSE),
        Variant("fedit", routed | {"method": "fedit"}),
        Variant("fedit on all linear layers", routed | {"method": "fedit"} | ALL_LINEAR),
        Variant("hetlora", routed | {"method": "hetlora"}),
        Variant("hetlora on all linear layers", routed | {"method": "hetlora"} | ALL_LINEAR),
        *(Variant(name, routed | {"method": name}) for name in others),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flan8/, shakespeare/, pacs32/")
    parser.add_argument("--models", type=Path, required=True, help="folder with stories260k/ and vit-cifar10/")
    parser.add_argument("--on", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--scale", choices=SCALES, default="committed")
    parser.add_argument("--seeds", type=int, help="number of seeds; default: the scale's")
    parser.add_argument("--work", type=Path, help="folder of the runs; default runs/domains-<scale>")
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")
    parsed = parser.parse_args(arguments)
    parsed.work = parsed.work or Path("runs") / f"domains-{parsed.scale}"
    return parsed


def changes(name: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the changes of every cell on this data set to the measured recipe."""
    places = {"data.source": str(parsed.data / name), "backbone.model": str(parsed.models / RECIPES[name])}
    return places | SCALES[parsed.scale][0]


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    for name in parsed.on:
        comparison = compare(
            as_measured(name),
            parsed.work / name,
            variants=variants(name, parsed.scale),
            seeds=parsed.seeds or SCALES[parsed.scale][1],
            overrides=changes(name, parsed),
            workers="auto",
            deadline=deadline,
            progress=Progress(Console()),
        )
        keep_comparison(parsed.work / name, RESULTS / f"domains-{parsed.scale}-{name}.json")
        for table in tables(comparison):
            print(f"\n## {name}: {table.title}\n\n{markdown(table.header, table.rows)}", flush=True)


if __name__ == "__main__":
    main()
