"""Measure the error of cost forecasts for a round: `python benchmarks/budgets.py`, about ten minutes on two cores.

In every setting and for each tier, two forecasts of a client's seconds are compared with the mean of a run's client
rounds: the forecast of `fftmoe plan --measure` (`line`), and the one that a run makes before it trains (`timed`).
Writes `results/budgets.json`.
"""

import argparse
import io
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.config import load_recipe
from fftmoe.report.progress import Progress
from fftmoe.setup.forecast import profile
from fftmoe.setup.run import run

BRIEF = (
    TRAINED_HEAD,
    "federation.rounds=2",
    "federation.clients_per_round=10",
    "engine.workers=1",
    "evaluation.local_only=false",
    "evaluation.max_examples=50",
    "data.test_examples=200",
    "trackers=[]",
)
SETTINGS = {
    "quickstart": (),
    "tiers in unlike blocks": ("adapter.blocks=all", "budgets.small.blocks=last-1", "budgets.medium.blocks=last-3"),
    "one epoch, equal shares": (
        "partition={kind: iid, num_clients: 20}",
        "federation.local_steps=null",
        "federation.local_epochs=1",
    ),
    "small batches, clients together": ("federation.batch_size=2", "federation.local_steps=24"),
    "LoRA": ("method=hetlora",),
}


def measured(overrides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return, by tier, the two forecasts and the measured seconds of a client's round, and its bytes."""
    recipe = load_recipe("paper", [*BRIEF, *overrides])
    line = {predicted.budget.name: predicted.seconds for predicted in profile(recipe).tiers}
    with tempfile.TemporaryDirectory() as folder:
        summary = run(recipe, Path(folder) / "run", Progress(Console(file=io.StringIO()))).summary
    return {
        tier: {"line": line[tier], "timed": seconds["predicted"], "measured": seconds["measured"], **bytes_of(found)}
        for tier, found in summary["prediction"].items()
        if (seconds := found.get("seconds_per_client_round"))
    }


def bytes_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("bytes_down", "bytes_up")}


def error(predicted: float, actual: float) -> float:
    """Return the relative error, which is above 0 if the prediction was too large."""
    return predicted / actual - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    settings = {}
    for name in parser.parse_args().settings:
        overrides = SETTINGS[name]
        settings[name] = {"overrides": list(overrides), "tiers": measured(overrides)}
        print(name, flush=True)
    rows, errors = [], {"line": [], "timed": []}
    for name, setting in settings.items():
        for tier, found in setting["tiers"].items():
            own = {kind: error(found[kind], found["measured"]) for kind in errors}
            for kind, value in own.items():
                errors[kind].append(abs(value))
            up = error(found["bytes_up"]["predicted"], found["bytes_up"]["measured"])
            rows.append((name, tier, f"{found['measured']:.2f}", *(f"{own[kind]:+.0%}" for kind in own), f"{up:+.1%}"))
    total = {kind: {"median": statistics.median(found), "worst": max(found)} for kind, found in errors.items()}
    written = {
        "machine": {**machine(), "load": os.getloadavg()[0]},
        "settings": settings,
        "absolute_relative_error_of_seconds": total,
    }
    write_result(RESULTS / "budgets.json", written, "settings")
    print(markdown(("setting", "tier", "s a round", "line", "timed", "bytes up"), rows))
    for kind, found in total.items():
        print(f"{kind}: median error {found['median']:.0%}, worst {found['worst']:.0%}")


if __name__ == "__main__":
    main()
