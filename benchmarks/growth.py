"""Measure how the cost of a round grows with experts, top-k, clients and examples: `python benchmarks/growth.py`.

The script times whole rounds on the quickstart's MiniLM in this process: plan, messages, clients' updates,
aggregation. The adapters are in the last two blocks with the cached prefix, every expert of the pool is resident,
texts have 32 tokens and batches have 16 texts. One quantity is varied at a time, the others stay as in `Setting`.
Rounds of all settings take turns; times are processor times.

Two curves are fitted to the median times t(x). The first is t = c x^b, by least squares of the logarithms, with a 95 %
interval for b from resampled turns. The second is t = fixed + each x, by least squares of the relative errors, because
at small sizes fixed costs dominate and b alone would look too good. Of 16 experts of this size `adapter.compute: auto`
computes all if k is 8 or more, so from there on a larger k costs nothing more.
"""

import argparse
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image

from at_once import texts
from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.backbones import fingerprint, first_adapted_block
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.config import load_recipe
from fftmoe.engines.local import make_engine
from fftmoe.records import Tensors
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import plan_round
from fftmoe.setup.clients import ClientSpec, build_client
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from timing import Seconds, interleave, use_device

PLOT = Path(__file__).parents[1] / "docs" / "growth.png"
LENGTH, BATCH = 32, 16
RESAMPLES = 2000


@dataclass(frozen=True)
class Setting:
    """The sizes of one round: `experts` in the pool, all of them resident; `examples` of each client, seen once."""

    experts: int = 16
    top_k: int = 2
    clients: int = 4
    examples: int = 32


# What is varied, and how it is called.
SIZES = {
    "experts": (8, 16, 32, 64, 128),
    "top_k": (1, 2, 4, 8, 16),
    "clients": (4, 8, 16, 32, 64),
    "examples": (16, 32, 64, 128, 256),
}
NAMES = {"experts": "experts M", "top_k": "top-k", "clients": "clients a round", "examples": "examples of a client"}


class Forgetful:
    """A store that keeps no client state, so that every round is a first one."""

    def load(self, client_id: int, before: int) -> Tensors:
        """Nothing."""
        return {}

    def save(self, client_id: int, round: int, state: Tensors) -> None:
        """Keeps nothing."""


def composed(experts: int, top_k: int) -> Experiment:
    budget = f"budgets=[{{name: all, fraction: 1, top_k: {top_k}, experts: {experts}}}]"
    settings = (TRAINED_HEAD, f"adapter.num_experts={experts}", budget, "trackers=[]", "engine.prefix_cache='off'")
    return compose(load_recipe("paper", settings))


def round_of(setting: Setting, experiment: Experiment, cache: Path) -> Callable[[], object]:
    """Return a function that runs one round."""
    model, cohort = experiment.model, range(setting.clients)
    examples = texts(setting.clients * setting.examples, LENGTH, len(experiment.label_names))
    cached = with_prefix(model, first_adapted_block(model), examples, cache, 2**32)
    budgets = dict.fromkeys(cohort, experiment.tiers[0])
    method = replace(experiment.method, budgets=budgets)  # type: ignore[type-var]
    training = replace(experiment.training, batch_size=BATCH, local_steps=None, local_epochs=1)
    rows = np.split(np.arange(len(cached)), setting.clients)
    spec = ClientSpec(experiment.recipe, experiment.label_names, method, cached, rows, Forgetful(), cached)
    engine = make_engine(1, partial(build_client, spec), build_client(spec, model))
    state = method.init(model)
    expect = partial(Expectation.of, method=method, backbone=fingerprint(model), num_examples=setting.examples)

    def one_round() -> None:
        plan = plan_round(method, state, 1, cohort, budgets, training, seed=0)
        updates = Exchange(engine, expect, Ledger()).updates(plan, partial(method.download, state))
        apply_round(method, state, plan, updates)

    return one_round


def settings_of(sizes: Mapping[str, Sequence[int]]) -> dict[str, Setting]:
    """Return every setting once, by name; the middle one belongs to all four quantities."""
    every = [replace(Setting(), **{quantity: size}) for quantity, own in sizes.items() for size in own]
    return {str(setting): setting for setting in every}


def measure(sizes: Mapping[str, Sequence[int]], repetitions: int) -> Seconds:
    """Return the seconds of the rounds, by setting."""
    experiments: dict[tuple[int, int], Experiment] = {}
    with tempfile.TemporaryDirectory() as cache:
        rounds = {}
        for name, setting in settings_of(sizes).items():
            key = setting.experts, setting.top_k
            if key not in experiments:
                experiments[key] = composed(*key)
            rounds[name] = round_of(setting, experiments[key], Path(cache))
        return interleave(rounds, repetitions, torch.device("cpu"))


def exponent(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return b and c of t = c x^b."""
    slope, intercept = np.polyfit(np.log(sizes), np.log(times), 1)
    return float(slope), float(np.exp(intercept))


def affine(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return the fixed cost and the cost of each unit."""
    x, t = np.asarray(sizes, float), np.asarray(times, float)
    fixed, each = np.linalg.lstsq(np.stack([1 / t, x / t], axis=1), np.ones_like(t), rcond=None)[0]
    return float(fixed), float(each)


def interval(sizes: Sequence[float], runs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % of the exponents when turns are drawn with replacement; a turn's times stay together.

    Args:
        runs: of every size its times, one a turn.
    """
    times, random = np.asarray(runs), np.random.default_rng(0)
    turns = times.shape[1]
    drawn = [np.median(times[:, random.integers(turns, size=turns)], axis=1).tolist() for _ in range(RESAMPLES)]
    low, high = np.quantile([exponent(sizes, medians)[0] for medians in drawn], [0.025, 0.975])
    return float(low), float(high)


def fitted(sizes: Sequence[int], runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return both fits of one quantity, from the times of every size."""
    times = [statistics.median(own) for own in runs]
    b, factor = exponent(sizes, times)
    fixed, each = affine(sizes, times)
    last = float(np.log(times[-1] / times[-2]) / np.log(sizes[-1] / sizes[-2]))
    errors = [abs((fixed + each * x) / t - 1) for x, t in zip(sizes, times, strict=True)]
    return {
        "sizes": list(sizes),
        "seconds": [list(own) for own in runs],
        "median_seconds": times,
        "power": {"exponent": b, "interval": interval(sizes, runs), "factor": factor, "last_doubling": last},
        "affine": {"fixed": fixed, "each": each, "largest_error": max(errors)},
    }


def growth(sizes: Mapping[str, Sequence[int]], seconds: Seconds) -> dict[str, dict[str, Any]]:
    """Return the fits of all quantities."""
    runs = {q: [seconds[str(replace(Setting(), **{q: size}))] for size in own] for q, own in sizes.items()}
    return {quantity: fitted(sizes[quantity], runs[quantity]) for quantity in sizes}


def plot(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw a panel for each quantity, both axes logarithmic: medians with their range, and the fits."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    for axes, (quantity, fit) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
        sizes, times = fit["sizes"], np.asarray(fit["median_seconds"])
        ends = np.asarray([[min(own), max(own)] for own in fit["seconds"]]).T
        x = np.geomspace(sizes[0], sizes[-1], 50)
        power, line = fit["power"], fit["affine"]
        axes.errorbar(sizes, times, yerr=np.abs(ends - times), fmt="o", color="black", markersize=4, capsize=2)
        axes.plot(x, power["factor"] * x ** power["exponent"], label=f"$x^{{{power['exponent']:.2f}}}$")
        label = f"{line['fixed']:.3g} s + {1e3 * line['each']:.3g} ms · x"
        axes.plot(x, line["fixed"] + line["each"] * x, "--", label=label)
        axes.set(xscale="log", yscale="log", xticks=sizes, xlabel=NAMES[quantity], ylabel="processor seconds a round")
        # At least a factor of 2.5, so that noise on a flat line does not look like growth.
        centre, half = np.sqrt(ends.min() * ends.max()), np.sqrt(max(2.5, 1.2 * ends.max() / ends.min()))
        axes.set_ylim(centre / half, centre * half)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper left")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.open(drawn).convert("RGB").quantize(32).save(path, optimize=True)  # a third of the bytes


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    header = ["varied", "from … to", "seconds a round", "exponent b (95 %)", "at the last doubling", "fixed, s"]
    rows = []
    for quantity, fit in found.items():
        sizes, times, power, line = fit["sizes"], fit["median_seconds"], fit["power"], fit["affine"]
        rows.append(
            [
                NAMES[quantity],
                f"{sizes[0]} … {sizes[-1]}",
                " / ".join(f"{t:.3g}" for t in times),
                f"{power['exponent']:.3f} ({power['interval'][0]:.3f} to {power['interval'][1]:.3f})",
                f"{power['last_doubling']:.2f}",
                f"{line['fixed']:.3g}",
                f"{1e3 * line['each']:.3g}",
                f"{line['largest_error']:.0%}",
            ]
        )
    return markdown([*header, "each one more, ms", "largest error of that line"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "growth.json")
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    use_device("cpu")
    load = [os.getloadavg()]
    found = growth(SIZES, measure(SIZES, arguments.repetitions))
    load.append(os.getloadavg())
    base = {**asdict(Setting()), "tokens": LENGTH, "batch_size": BATCH}
    where = {**machine(), "load_before_and_after": load}
    write_result(arguments.results, {"machine": where, "base": base, "varied": found}, "varied")
    plot(found, arguments.plot)
    print(table(found))


if __name__ == "__main__":
    main()
