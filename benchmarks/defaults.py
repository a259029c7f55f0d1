"""Run the comparison that chooses the defaults of a recipe: `python benchmarks/defaults.py --data ../shared/data`.

Every data set runs with a recipe that says what the data is and nothing else, so with the defaults, and with one of
them changed at a time. All figures are on training rows that are set aside; no test row is looked at. After a stop the
same command continues from its work folder, and `--seconds` stops it by itself.

A default is changed only if another value is better on the mean over all data sets and partitions, and not worse by
more than the interval on any of them.

Language models have defaults of their own, so they have variants of their own: `--sets shakespeare,flan8`, a model of
260,000 parameters with the clients that these sets name, and `--sets flan8-smollm2`, SmolLM2-135M with fewer rows and
steps.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from common import keep_comparison, markdown, places_of
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

HELD_OUT, TRAINED_ON = 800, 2400  # rows of each data set
PARTITIONS = ("iid", "dirichlet:0.1", "shards:1")
NUM_CLIENTS = 20
IMAGES, SMOLLM2 = ("pacs32", "fashion_mnist"), "flan8-smollm2"
LANGUAGE = ("shakespeare", "flan8", SMOLLM2)
SETS = ("trec6", "hwu64", "banking77", "snips", "ag_news", *IMAGES)
DEFAULTS = "the defaults"
VARIANTS = (
    Variant(DEFAULTS),
    Variant("no rows set aside, the last round", {"data.validation": "off"}),
    Variant(
        "a shared update of query and value, rank 32",
        {"adapter.shared_targets": "query-value", "adapter.shared_rank": 32},
    ),
    Variant("no routed experts beside the shared update", {"adapter.scale": 1e-3}),
    Variant("experts at full scale", {"adapter.scale": 1.0}),
    Variant("the paper's pool", {"adapter": "paper"}),
    Variant("no server momentum", {"federation.server_optimizer": "sgd"}),
    Variant("half of what the server's momentum adds", {"federation.server_beta1": 0.6}),
    Variant("half the rate", {"federation.learning_rate": 1e-3}),
    Variant("twice the rate", {"federation.learning_rate": 4e-3}),
    Variant("12 local steps", {"federation.local_steps": 12}),
    Variant("rates that stay", {"federation.schedule": "constant"}),
    Variant("twice the rate that stays", {"federation.learning_rate": 4e-3, "federation.schedule": "constant"}),
    Variant("gradients clipped to a norm of 1", {"federation.clip_gradients": 1.0}),
    Variant("2,048 random features", {"head.num_features": 2048}),
    Variant("4,096 random features", {"head.num_features": 4096}),
    Variant("a head computed after every second round", {"head.every": 2}),
    Variant("fedit with the same head and server", {"method": "fedit"}),
    Variant("fedit as published, with the same head", {"method": "fedit", "federation.server_optimizer": "sgd"}),
    Variant("the solved head alone", {"method": "head-only"}),
    *(
        Variant(f"the solved head alone, {number:,} features", {"method": "head-only", "head.num_features": number})
        for number in (512, 1024, 2048, 4096)
    ),
)
OF_LANGUAGE = (
    Variant(DEFAULTS),
    Variant("rates that stay", {"federation.schedule": "constant", "federation.learning_rate": 4e-3}),
    Variant("rates that fall", {"federation.schedule": "cosine", "federation.learning_rate": 4e-3}),
    Variant("twice the rate that falls", {"federation.schedule": "cosine", "federation.learning_rate": 8e-3}),
    Variant("four times the rate that falls", {"federation.schedule": "cosine", "federation.learning_rate": 1.6e-2}),
    Variant("half the rate that stays", {"federation.schedule": "constant", "federation.learning_rate": 2e-3}),
    Variant(
        "the momentum of classifiers",
        {
            "federation.server_optimizer": "momentum",
            "federation.learning_rate": 2e-3,
            "federation.schedule": "cosine",
        },
    ),
    Variant("a server momentum of a half", {"federation.server_optimizer": "momentum", "federation.server_beta1": 0.5}),
    Variant("no routed experts beside the shared update", {"adapter.scale": 1e-3}),
    Variant("fedit with the same server", {"method": "fedit"}),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places_of(parser, SETS, seeds=1, work="defaults")
    parser.add_argument("--variants", help="names of variants, or their beginnings, separated by commas; default: all")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--clients", type=int, default=NUM_CLIENTS, help="how many clients share the rows")
    return parser.parse_args(arguments)


def values_of(name: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """A recipe that says what this data set is."""
    if name in LANGUAGE:
        return _values_of_language(name, parsed)
    data = {"source": str(parsed.data / name), "train_examples": TRAINED_ON, "validation_examples": HELD_OUT}
    backbone = {"backbone": {"model": str(parsed.models / "vit-cifar10")}} if name in IMAGES else {}
    return {"name": name, "data": data, "partition": {"kind": "iid", "num_clients": parsed.clients}, **backbone}


def _values_of_language(name: str, parsed: argparse.Namespace) -> dict[str, Any]:
    rows = {"train_examples": 2000, "validation_examples": 400}  # flan8 has 2,400
    common = {"name": name, "partition": {"kind": "natural", "by": "domain"}}
    if name != SMOLLM2:
        backbone = {"model": str(parsed.models / "stories260k"), "task": "causal-lm"}
        return {**common, "backbone": backbone, "data": {"source": str(parsed.data / name), **rows}}
    return {
        **common,
        "backbone": {"model": "builtin:smollm2", "task": "causal-lm"},
        "data": {"source": str(parsed.data / "flan8"), "train_examples": 800, "validation_examples": 200},
        "adapter": {"blocks": "last-third"},
        "federation": {"rounds": 4, "batch_size": 8, "local_steps": 8},
        "evaluation": {"every": 4},
    }


def chosen(variants: Sequence[Variant], wanted: Sequence[str]) -> list[Variant]:
    """The defaults, and each variant that has one of these names or, where none has it, a name that begins so."""
    names = {variant.label for variant in variants}
    whole, begun = {name for name in wanted if name in names}, tuple(name for name in wanted if name not in names)
    return [each for each in variants if each.label in {DEFAULTS, *whole} or each.label.startswith(begun)]


def table(comparisons: Mapping[str, Comparison]) -> list[list[str]]:
    """Each variant's mean difference to the defaults, by data set and over all, with the number of pairs.

    An accuracy differs by points, and a perplexity by hundredths of its logarithm, about percent.
    """
    rows = []
    run = {cell.variant for comparison in comparisons.values() for cell in comparison.cells}
    labels = dict.fromkeys(variant.label for variant in (*VARIANTS, *OF_LANGUAGE))
    for label in [each for each in labels if each in run - {DEFAULTS}]:
        all_pairs: list[float] = []
        cells = []
        for comparison in comparisons.values():
            values = {
                (cell.variant, cell.partition, cell.seed): _measured(cell)
                for cell in comparison.cells
                if cell.status == "done"
            }
            pairs = [
                100 * (value - values[DEFAULTS, partition, seed])
                for (name, partition, seed), value in values.items()
                if name == label and (DEFAULTS, partition, seed) in values
            ]
            all_pairs += pairs
            cells.append(f"{statistics.fmean(pairs):+.1f}" if pairs else "–")
        mean = f"{statistics.fmean(all_pairs):+.2f} ({len(all_pairs)})" if all_pairs else "–"
        rows.append([label, *cells, mean])
    return rows


def _measured(cell: CellResult) -> float:
    value = float(cell.summary[cell.metric])
    return math.log(value) if cell.metric == "perplexity" else value


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    comparisons = {}
    for name in parsed.sets.split(","):
        variants = OF_LANGUAGE if name in LANGUAGE else VARIANTS
        comparisons[name] = compare(
            values_of(name, parsed),
            parsed.work / name,
            variants=chosen(variants, parsed.variants.split(",")) if parsed.variants else variants,
            partitions=["natural"] if name in LANGUAGE else parsed.partitions.split(","),
            seeds=parsed.seeds,
            workers="auto",
            deadline=deadline,
            progress=Progress(Console()),
        )
        kept = f"defaults-{name}.json" if parsed.clients == NUM_CLIENTS else f"defaults-{name}-{parsed.clients}.json"
        keep_comparison(parsed.work / name, parsed.results / kept)
    print(markdown(["change", *comparisons, "mean (pairs)"], table(comparisons)))


if __name__ == "__main__":
    main()
