"""Measure the bytes of uploads and the accuracy with fewer bits: `python benchmarks/bytes.py [--data FOLDER]`.

Uploads are the lengths of real messages, one of every client of the quickstart in a first round. They are divided by
the size of the whole adapter in float32: all experts, their routers and the shared part, without the head. A trained
head is part of each message, and its bytes are shown separately. A closed-form head, as in the quickstart, has separate
messages. FedIT and HetLoRA upload factors of the rank that costs as much as a tier's experts; in FedIT all clients use
the rank of the smallest tier. Accuracies are of whole runs that differ in `federation.upload` only, so the differences
pair seed by seed. One float32 run computes the experts in another order of summation, so it differs by rounding only;
its difference shows the size of chance effects. A verdict is open if the 95 % interval allows both outcomes. `--data`
is a folder with `banking77/`.

Measurements in the results file are not repeated.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from common import RESULTS, TRAINED_HEAD, Results, as_measured, column, machine, markdown, mean_and_spread, write_result
from fftmoe.comparison.statistics import Estimate, estimate
from fftmoe.config import load_recipe
from fftmoe.engines.base import Reply
from fftmoe.engines.local import make_engine
from fftmoe.records import ServerState, pack_plan, unpack
from fftmoe.records.codec import NUMBER_FORMATS
from fftmoe.server.plan import plan_round
from fftmoe.setup.clients import ClientSpec, build_client
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from growth import Forgetful

GOAL, POINTS = 1 / 8, 0.005
MEAN = "mean over clients"
FEWER = ["federation.local_steps=1"]  # all that LoRA sends has the same size after any training
METHODS = {
    "fft-moe": [],
    "fedit, match parameters": ["method=fedit", "lora.match=parameters", *FEWER],
    "fedit, match uplink": ["method=fedit", "lora.match=uplink", *FEWER],
    "hetlora, match parameters": ["method=hetlora", "lora.match=parameters", *FEWER],
}
CONTROL = "float32, other rounding"
SETTINGS = {upload: [f"federation.upload={upload}"] for upload in NUMBER_FORMATS} | {CONTROL: ["adapter.compute=wide"]}
Sizes = Mapping[str, Any]


def uploads(experiment: Experiment, state: ServerState) -> dict[int, bytes]:
    """Return, by client, the message that it sends in a round of all clients."""
    method, everyone = experiment.method, range(experiment.num_clients)
    plan = plan_round(method, state, 1, everyone, experiment.budgets, experiment.training, experiment.recipe.seed)
    rows = experiment.partition.indices
    spec = ClientSpec(
        experiment.recipe, experiment.label_names, method, experiment.train, rows, Forgetful(), experiment.test
    )
    engine = make_engine(1, partial(build_client, spec), build_client(spec, experiment.model))
    groups = [[(client.client_id, pack_plan(client, method.download(state, client)))] for client in plan.clients]
    return {answer.client_id: answer.message for answer in engine.run_clients(groups) if isinstance(answer, Reply)}


def adapter_bytes(state: ServerState) -> int:
    """Return the bytes of the whole adapter as the server holds it, in float32, without the head."""
    return sum(tensor.nbytes for name, tensor in state.tensors.items() if not name.startswith("head."))


def head_bytes(message: bytes) -> int:
    """Return the bytes of the head in a message, including its scales."""
    return sum(tensor.nbytes for name, tensor in unpack(message)[1].items() if name.startswith("head."))


def sizes(messages: Mapping[int, bytes], tiers: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Means over the clients of each tier, in the order of their first clients' sizes, then over all clients.

    Args:
        tiers: the name of each client's.
    """
    groups = {tier: [m for c, m in messages.items() if tiers[c] == tier] for tier in dict.fromkeys(tiers.values())}
    ordered = dict(sorted(groups.items(), key=lambda group: len(group[1][0])))
    return {
        name: {
            "clients": len(own),
            "bytes": statistics.fmean(map(len, own)),
            "head": statistics.fmean(map(head_bytes, own)),
        }
        for name, own in {**ordered, MEAN: list(messages.values())}.items()
    }


def measured(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the sizes of a recipe's uploads and of its adapter, and the LoRA rank of each tier."""
    experiment = compose(load_recipe(recipe, [*overrides, "trackers=[]"]))
    state = experiment.method.init(experiment.model)
    tiers = {client_id: experiment.budgets[client_id].name for client_id in range(experiment.num_clients)}
    rank = getattr(experiment.method, "rank", lambda tier: 0)
    return {
        "adapter_bytes": adapter_bytes(state),
        "uploads": sizes(uploads(experiment, state), tiers),
        "ranks": {tier.name: rank(tier) for tier in experiment.tiers},
    }


def messages(results: Results, recipe: str) -> dict[tuple[str, str], Sizes]:
    """Return the messages by method and upload, from the file or from one round of all clients."""
    found = {}
    for method, overrides in METHODS.items():
        for upload in NUMBER_FORMATS:
            name = f"messages of {recipe}, {method}, {upload}"
            if name not in results.runs:
                settings = [TRAINED_HEAD, *overrides, f"federation.upload={upload}"]
                entry = {"recipe": recipe, "overrides": settings, "machine": machine(), **measured(recipe, settings)}
                results.runs[name] = entry
                write_result(results.path, {"runs": results.runs}, "runs")
            found[method, upload] = results.runs[name]
    return found


def fraction_table(found: Mapping[str, Sizes]) -> str:
    """Return, by upload and tier, the bytes divided by those of the whole adapter."""
    rows = []
    for upload, entry in found.items():
        whole = entry["adapter_bytes"]
        for tier, own in entry["uploads"].items():
            total, head = own["bytes"], own["head"]
            met = "yes" if total <= GOAL * whole else f"no, {(total - GOAL * whole) / 1024:.1f} KiB too many"
            shares = [f"{total / whole:.4f}", f"{(total - head) / whole:.4f}"]
            rows.append([upload, tier, f"{own['clients']}", f"{total / 1024:.1f}", f"{head / 1024:.1f}", *shares, met])
    header = ["upload", "tier", "clients", "KiB up", "of it the head", "share of the adapter", "without the head"]
    return markdown([*header, "at most 1/8"], rows)


def method_table(found: Mapping[tuple[str, str], Sizes]) -> str:
    """Return, by method and upload, the bytes of a client's round, and their ratio to those of fft-moe."""
    rows = []
    for (method, upload), entry in found.items():
        kib = {tier: own["bytes"] / 1024 for tier, own in entry["uploads"].items()}
        tiers = entry["ranks"]  # in the recipe's order, whatever their sizes
        mine = found["fft-moe", upload]["uploads"][MEAN]["bytes"] / 1024
        ranks = " / ".join(str(rank) for rank in tiers.values()) if any(tiers.values()) else "–"
        by_tier = " / ".join(f"{kib[tier]:.0f}" for tier in tiers)
        rows.append([method, upload, ranks, by_tier, f"{kib[MEAN]:.1f}", f"{kib[MEAN] / mine:.2f}"])
    return markdown(["method", "upload", "rank by tier", "KiB up by tier", "mean KiB up", "× fft-moe"], rows)


def accuracies(
    results: Results, name: str, recipe: str, overrides: Sequence[str], seeds: int, limit: int
) -> dict[str, list[dict[str, Any]]]:
    """By upload the summaries of its seeds: those in the file, and up to `limit` more.

    Seed by seed, so that a benchmark that is stopped early still compares every upload; the control comes last.
    """
    found: dict[str, list[dict[str, Any]]] = {upload: [] for upload in SETTINGS}
    for upload, seed in sorted(product(SETTINGS, range(seeds)), key=lambda run: (run[0] == CONTROL, run[1])):
        key = f"{name}, {upload}, seed {seed}"
        if key not in results.runs:
            if limit == 0:
                continue
            limit -= 1
        found[upload].append(results.run(key, recipe, [*overrides, *SETTINGS[upload], f"seed={seed}"]))
    return found


def accuracy_rows(name: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return means over seeds, and differences to float32 over the seeds that both have."""
    rows, base = [], {run["seed"]: run["accuracy"] for run in found["float32"]}
    for upload, runs in found.items():
        own = column(runs, "accuracy")
        apart = estimate([run["accuracy"] - base[run["seed"]] for run in runs if run["seed"] in base])
        if apart is None:
            continue
        half = "" if apart.half_width is None else f" ± {apart.half_width:.3f}"
        less = f"{apart.mean:+.4f}{half}" if upload != "float32" else "–"
        tiers = [tier for run in runs for tier in run["per_client_round_by_tier"].values()]
        rounds = sum(tier["client_rounds"] for tier in tiers)
        kib = sum(tier["client_rounds"] * tier["bytes_up"] for tier in tiers) / rounds / 1024
        met = "–" if upload == "float32" else verdict(apart)
        rows.append([name, upload, str(len(runs)), f"{kib:.1f}", mean_and_spread(own), less, met])
    return rows


def verdict(apart: Estimate) -> str:
    """Return whether the whole interval is within the allowed loss, outside it, or neither; one run decides nothing."""
    half = float("inf") if apart.half_width is None else apart.half_width
    if apart.mean - half >= -POINTS:
        return "yes"
    return "no" if apart.mean + half < -POINTS else "open"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with banking77/, which is then measured too")
    parser.add_argument(
        "--trained-head", action="store_true", help="adds the quickstart with a head that clients train"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the runs on banking77")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--runs", type=int, default=10**6, help="at most this many new runs; 0 shows the existing results"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "bytes.json")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    found = messages(results, "paper")
    print(fraction_table({upload: found["fft-moe", upload] for upload in NUMBER_FORMATS}))
    print(f"\n{method_table(found)}", flush=True)
    common = ["evaluation.local_only=false", "evaluation.every=1000", "trackers=[]"]
    common += [f"engine.workers={arguments.workers}"]
    sets = {"quickstart": ("paper", common)}
    if arguments.trained_head:
        sets["quickstart, trained head"] = ("paper", [TRAINED_HEAD, *common])
    if arguments.data:
        own = [f"data.source={arguments.data / 'banking77'}", f"federation.rounds={arguments.rounds}"]
        sets[f"banking77, {arguments.rounds} rounds"] = (str(as_measured("banking77")), [*common, *own])
    rows = []
    for name, (recipe, overrides) in sets.items():
        rows += accuracy_rows(name, accuracies(results, name, recipe, overrides, arguments.seeds, arguments.runs))
    header = ["data", "upload", "seeds", "KiB up a client-round", "accuracy", "less float32 (95 %)"]
    print(f"\n{markdown([*header, 'at most 0.5 points lower'], rows)}")


if __name__ == "__main__":
    main()
