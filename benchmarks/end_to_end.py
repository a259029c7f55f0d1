"""Measure the effect of each optimisation on a whole epoch: `python benchmarks/end_to_end.py [--accuracy]`.

The script uses the quickstart's model and texts, with adapters in the last two blocks. First it times a local epoch in
batches of 16: from a naive implementation to fftmoe's own, with one more optimisation in each step, and fftmoe's own
with each optimisation switched off. Then it times a round of clients with small batches, trained one after another, in
one batch, and in worker processes. Before any timing, all variants must give the same losses on the same examples.

`--accuracy` instead runs the whole quickstart with the slow settings and with the fast ones.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import small_clients
from common import RESULTS, TRAINED_HEAD, Results, column, machine, markdown, mean_and_spread, write_result
from fftmoe.backbones import find_precision
from fftmoe.config import load_recipe
from timing import Seconds, device_name, interleave, ratio, use_device
from trick_bench import Bench, prepare
from tricks import FULL, Tricks, cumulative, left_out

CPU = torch.device("cpu")
CACHED = 768  # examples whose cache is built to see what it costs
PARTS = 3  # of the rounds, over which a ratio's range is taken
LONGEST = 128  # tokens that are allowed
SETTINGS = (
    TRAINED_HEAD,
    "trackers=[]",
    f"data.max_length={LONGEST}",
    "engine.prefix_cache='off'",  # quoted, or YAML reads False
    "budgets=[{name: all, fraction: 1, top_k: 2, experts: 16}]",
)
EPOCH = ("federation.local_steps=null", "federation.local_epochs=1")
SMALL_LENGTHS, SMALL_BATCH, SMALL_STEPS = (16, 32), 2, 3

# Relative difference of a step's loss. In float32 only the order of sums differs; bfloat16 keeps 8 bits of a number.
SAME, ALIKE = 1e-4, 2e-2

GOALS = {"epoch": 10.0, "small clients": 20.0}
PRODUCT, HABIT, CACHE = "the product itself", "naive, and inputs that require gradients", "building the cache"

SLOW = ("engine.prefix_cache='off'", "engine.clients_per_batch=1", "adapter.compute=loop", "engine.precision=float32")
FAST = (
    "engine.prefix_cache=auto",
    "engine.clients_per_batch=auto",
    "adapter.compute=auto",
    "engine.precision=bfloat16",
)
SEEDS = 3


def check(bench: Bench, variants: Mapping[str, Tricks]) -> dict[str, float]:
    """The largest difference of a step's loss to the naive stack's, by variant, all on the same batches.

    Raises:
        SystemExit: one is too large, so the variants do not compute the same.
    """

    def losses(tricks: Tricks) -> list[float]:
        # Batches of like length for all: else steps have other examples.
        clients = bench.one_after_another(replace(tricks, like_length=True))
        return [loss for steps in clients for loss in steps]

    expected = losses(Tricks())
    apart = {
        name: max(abs(a - b) / abs(b) for a, b in zip(losses(tricks), expected, strict=True))
        for name, tricks in variants.items()
    }
    wrong = [name for name, tricks in variants.items() if not apart[name] < (ALIKE if tricks.bfloat16 else SAME)]
    if wrong:
        raise SystemExit(f"not the same training: {', '.join(f'{name} ({apart[name]:.1e})' for name in wrong)}")
    return apart


def measure_epoch(bench: Bench, bfloat16: bool, rounds: int, habit: bool = True) -> dict[str, Any]:
    """Check every variant of an epoch, then time all in the same rounds."""
    rows = cumulative(bfloat16)
    full = list(rows.values())[-1]
    variants = {**rows, **left_out(full)}
    if habit:
        variants[HABIT] = Tricks(input_gradients=True)
    apart = check(bench, variants)
    calls: dict[str, Callable[[], object]] = {
        **{name: partial(bench.one_after_another, tricks) for name, tricks in variants.items()},
        PRODUCT: partial(bench.product, full),
        CACHE: partial(bench.build_cache, full.dtype, cached := min(CACHED, len(bench.experiment.train))),
    }
    lengths = bench.texts.lengths.double()
    shares = torch.tensor([0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)
    return {
        "examples": len(bench.texts),
        "examples_cached": cached,
        "mean_length": float(lengths.mean()),
        "length_quantiles": dict(zip(map(str, shares.tolist()), lengths.quantile(shares).tolist(), strict=True)),
        "cumulative": list(rows),
        "tokens": {name: bench.tokens(tricks) for name, tricks in {**variants, PRODUCT: full}.items()},
        "loss_apart": apart,
        "seconds": interleave(calls, rounds, CPU),
    }


def measure_small(clients: int, full: Tricks, rounds: int, cache_dir: Path) -> dict[str, Any]:
    """Time a round of clients that have only the examples of a few small batches."""
    few = (
        f"partition.num_clients={clients}",
        f"federation.clients_per_round={clients}",
        f"federation.batch_size={SMALL_BATCH}",
        f"federation.local_steps={SMALL_STEPS}",
    )
    recipe = load_recipe("paper", (*SETTINGS, *few))
    bench = prepare(recipe, SMALL_LENGTHS, clients, SMALL_BATCH * SMALL_STEPS, cache_dir)
    check(bench, {"full stack": full})
    return small_clients.measure(bench, full, SMALL_LENGTHS[1], rounds)


def epoch_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return each variant with its time, and its speed-up over the naive stack and over the row before."""
    seconds: Seconds = result["seconds"]
    rows, before = [], "naive"
    for name in [*result["cumulative"], PRODUCT, *({HABIT} & seconds.keys())]:
        rows.append(
            (
                name,
                str(result["tokens"][name]),
                f"{1e3 * statistics.median(seconds[name]):.0f}",
                _spread(ratio(seconds["naive"], seconds[name], PARTS)),
                f"{ratio(seconds[before], seconds[name], 1)[0]:.2f}" if name in result["cumulative"] else "–",
            )
        )
        before = name
    return ("", "tokens", "ms", "faster than naive by", "than the row before"), rows


def left_out_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return how much longer the full stack takes without each optimisation."""
    seconds: Seconds = result["seconds"]
    full = seconds[result["cumulative"][-1]]
    names = [name for name in seconds if name.startswith("without ")]
    rows = [(name, _spread(ratio(seconds[name], full, PARTS), digits=2)) for name in names]
    return ("full stack", "takes longer by"), rows


def cache_cost(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the cost of building the cache, in epochs without and with it, and the epochs until it pays off."""
    seconds = {name: statistics.median(taken) for name, taken in result["seconds"].items()}
    build = seconds[CACHE] * result["examples"] / result["examples_cached"]
    without, with_it = seconds["without cached"], seconds[result["cumulative"][-1]]
    saved = without - with_it
    pays = build / saved if saved > 0 else float("inf")
    return {"epochs_without": build / without, "epochs_with": build / with_it, "pays_after_epochs": pays}


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*values, d=digits)


def goals(epoch: Mapping[str, Any] | None, small: Sequence[dict[str, Any]]) -> list[str]:
    """Print whether the goals are met."""
    lines = []
    if epoch is not None:
        faster = ratio(epoch["seconds"]["naive"], epoch["seconds"][PRODUCT], PARTS)
        lines.append(f"local epoch: {_spread(faster)} of {GOALS['epoch']:.0f}: {_met(faster[0], 'epoch')}")
    for result in small:
        wall, bound = small_clients.best(result)
        lines.append(
            f"{result['clients']} small clients: {wall:.1f} on the wall, at most {bound:.1f}, "
            f"of {GOALS['small clients']:.0f}: {_met(wall, 'small clients')}"
        )
    return lines


def _met(value: float, goal: str) -> str:
    return "met" if value >= GOALS[goal] else f"missed, {value / GOALS[goal]:.0%} of it"


def accuracy(results: Results, seeds: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Run the whole quickstart in both ways; earlier runs are read from the file."""
    rows = []
    for name, switches in {"slow": SLOW, "fast": FAST}.items():
        runs = [
            results.run(
                f"{name}-{seed}", "paper", (TRAINED_HEAD, *switches, f"seed={seed}", "evaluation.local_only=false")
            )
            for seed in range(seeds)
        ]
        took = statistics.median(column(runs, "seconds"))
        rows.append((name, mean_and_spread(column(runs, "accuracy")), str(len(runs)), f"{took:.0f}"))
    return ("switches", "accuracy", "seeds", "seconds of a run"), rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--examples", type=int, default=192, help="examples of the epoch; a quickstart client trains on 192 a round"
    )
    parser.add_argument(
        "--clients", type=int, nargs="*", default=[8, 32], help="clients in the rounds with small batches"
    )
    parser.add_argument("--habit", action="store_true", help=f"also time: {HABIT}")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS / "end_to_end.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parse(arguments)
    use_device("cpu")
    if parsed.accuracy:
        results = Results(parsed.results.with_name(f"{parsed.results.stem}_accuracy.json"))
        print(markdown(*accuracy(results, parsed.seeds)))
        return 0
    bfloat16 = find_precision("auto", CPU) == torch.bfloat16
    full = replace(FULL, bfloat16=bfloat16)
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("paper", (*SETTINGS, *EPOCH))
        bench = prepare(recipe, (1, LONGEST), 1, parsed.examples, Path(folder))
        epoch = measure_epoch(bench, bfloat16, parsed.rounds, parsed.habit)
        print(f"{parsed.examples} texts, mean length {epoch['mean_length']:.1f}, {epoch['length_quantiles']}\n")
        print(f"{markdown(*epoch_table(epoch))}\n\n{markdown(*left_out_table(epoch))}\n", flush=True)
        cost = cache_cost(epoch)
        small = [measure_small(clients, full, parsed.rounds, Path(folder)) for clients in parsed.clients]
    print(f"building the cache: {cost}\n\n{markdown(*small_clients.table(small))}\n")
    lines = goals(epoch, small)
    print("\n".join(lines))
    load.append(os.getloadavg())
    found = {
        "machine": {**machine(), "device": device_name(CPU), "load_before_and_after": load},
        "rounds": parsed.rounds,
        "epoch": {**epoch, "cache": cost},
        "small_clients": small,
        "goals": lines,
    }
    write_result(parsed.results, found, "small_clients")
    return 0


if __name__ == "__main__":
    sys.exit(main())
