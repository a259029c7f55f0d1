"""Measure the accuracy of private runs: `python benchmarks/private.py --data ../shared/data --models ../shared/models`.

TREC-6 is divided among 200 clients of about 27 questions each. Half of them are in a round, and the pool is small, so
that the noise does not dominate. The clip norm of each row is the one of `CLIPS` with the best accuracy on held-out
training rows; only the runs with that norm use test rows. Runs in `--results` do not run again.

A second table protects single examples instead, over 20 clients of about 270 questions.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Results, column, markdown, mean_and_spread
from fftmoe.config import recipe_folder
from fftmoe.rounds.private import CLIENT_ADJACENCY
from fftmoe.server.accountant import calibrate
from grid import places

RECIPE = recipe_folder() / "grid" / "trec6.yaml"
CLIENTS, PER_ROUND, DELTA = 200, 100, 1e-3
CLIPS = (0.3, 1.0, 3.0)
EPSILONS = (8.0, 2.0)
METHODS = ("fft-moe", "head-only")
EXAMPLE_NOISE = 1.0
COMMON = (
    "adapter={num_experts: 4, expert_dim: 2, shared_rank: 0, scale: 1.0, blocks: last-1, residents: balanced}",
    "budgets=[{name: small, fraction: 0.5, top_k: 1, experts: 2}, {name: large, fraction: 0.5, top_k: 2, experts: 4}]",
    "head={kind: averaged, learning_rate: 1.0}",
    "federation.batch_size=16",
    "data.train_examples=null",
    "data.labels=[ABBR, DESC, ENTY, HUM, LOC, NUM]",
    "trackers=[]",
    "evaluation.every=1000",
)
CLIENTS_PRIVATE = (
    f"partition={{kind: dirichlet, alpha: 1.0, num_clients: {CLIENTS}, min_examples: 4}}",
    f"federation.clients_per_round={PER_ROUND}",
    "federation.local_steps=2",
)
EXAMPLES_PRIVATE = (
    "partition={kind: dirichlet, alpha: 1.0, num_clients: 20, min_examples: 64}",
    "adapter.balance=switch",
    "federation.clients_per_round=20",
    "federation.local_steps=4",
)
Choices = dict[str, list[str]]
"""By row of a table, what the recipe says of privacy: one, or one for each clip norm that is tried."""


def private_clients(rounds: int) -> Choices:
    """Run with sums only, and with noise on the sums."""
    noise = {epsilon: calibrate(PER_ROUND / CLIENTS, epsilon, DELTA, rounds, CLIENT_ADJACENCY) for epsilon in EPSILONS}
    noisy = {
        f"epsilon {epsilon:g}": [f"{{clip_norm: {c}, noise_multiplier: {z}, delta: {DELTA}}}" for c in CLIPS]
        for epsilon, z in noise.items()
    }
    return {"none": ["off"], "sums only": ["{}"], **noisy}


def private_examples() -> Choices:
    """Run with noise of the clients in every step."""
    own = f"noise_multiplier: {EXAMPLE_NOISE}, delta: {DELTA}"
    return {
        "none": ["off"],
        f"examples, noise {EXAMPLE_NOISE:g}": [f"{{examples: {{clip_norm: {c}, {own}}}}}" for c in CLIPS],
    }


def spent_by(runs: Sequence[dict[str, Any]]) -> str:
    """Return the largest epsilon of the runs, for clients or for examples."""
    sections = [run.get("privacy", {}) for run in runs]
    spent = [section.get("examples", section).get("epsilon") for section in sections]
    return f"{max(spent):.2f}" if all(epsilon is not None for epsilon in spent) else "-"


def best(results: Results, name: str, tried: Sequence[str], common: Sequence[str]) -> str:
    """Return the clip norm with the best accuracy on held-out rows."""
    held_out = [*common, "data.validation_examples=500", "seed=100"]
    found = {
        privacy: results.run(f"{name}, {privacy}, held out", str(RECIPE), [*held_out, f"privacy={privacy}"])["accuracy"]
        for privacy in (tried if len(tried) > 1 else ())
    }
    return max(found, key=lambda privacy: found[privacy]) if found else tried[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with trec6/")
    parser.add_argument("--models", type=Path, help="folder with models, if the hub cannot be reached")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS / "private.json")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    here = [f"{key}={value}" for key, value in places(RECIPE, "trec6", arguments.data, arguments.models).items()]
    common = [*here, *COMMON, f"federation.rounds={arguments.rounds}", f"engine.workers={arguments.workers}"]
    clients, examples = [*common, *CLIENTS_PRIVATE], [*common, *EXAMPLES_PRIVATE]
    print(table(results, "", private_clients(arguments.rounds), clients, arguments.seeds))
    print(table(results, "examples: ", private_examples(), examples, arguments.seeds))


def table(results: Results, prefix: str, choices: Choices, common: Sequence[str], seeds: int) -> str:
    """Accuracy by method and privacy, as markdown; `prefix` tells its runs from those of another table."""
    rows = []
    for method, (name, tried) in itertools.product(METHODS, choices.items()):
        own = [*common, f"method={method}"]
        chosen = best(results, f"{prefix}{method}, {name}", tried, own)
        runs = [
            results.run(f"{prefix}{method}, {name}, seed {s}", str(RECIPE), [*own, f"privacy={chosen}", f"seed={s}"])
            for s in range(seeds)
        ]
        clip = chosen.partition("clip_norm: ")[2].partition(",")[0].strip("}") or "-"
        accuracy = mean_and_spread(column(runs, "accuracy"))
        small = mean_and_spread(column(runs, "accuracy_by_tier", "small"))
        rows.append([method, name, clip, spent_by(runs), accuracy, small])
    return markdown(["method", "privacy", "clip norm", "epsilon spent", "accuracy", "as the small tier"], rows)


if __name__ == "__main__":
    main()
