"""Change one part of the method at a time, on the quickstart with a trained head: `python benchmarks/ablation.py`."""

import argparse

from common import RESULTS, TRAINED_HEAD, Results, column, markdown, mean_and_spread

# The first row is the quickstart with a trained head; every other row changes only the named key.
VARIANTS = {
    "quickstart (per-expert, detached, heterogeneity-aware, SGD head)": [],
    "balance: switch": ["adapter.balance=switch"],
    "balance: none": ["adapter.balance=none"],
    "aggregation: fedavg": ["federation.aggregation=fedavg"],
    "gates: renormalized": ["adapter.gates=renormalized"],
    "gates: softmax": ["adapter.gates=softmax"],
    "head optimizer: adamw, 2e-3": ["head.optimizer=adamw", "head.learning_rate=0.002"],
    "adapter not trained": ["federation.learning_rate=1.0e-12"],
}
# These rows run with the first seed only.
ONCE = {
    "residents: balanced": ["adapter.residents=balanced"],
    "explore: false": ["adapter.explore=false"],
    "head: averaged": ["head.kind=averaged"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = Results(RESULTS / "ablation.json")
    common = [TRAINED_HEAD, "evaluation.local_only=false", "evaluation.every=1000"]
    # Seed by seed, so that a grid that is stopped early still compares every variant.
    for seed in range(arguments.seeds):
        for name, overrides in (VARIANTS | ONCE if seed == 0 else VARIANTS).items():
            results.run(f"{name}, seed {seed}", "paper", [*common, *overrides, f"seed={seed}"])
    rows = []
    for name in VARIANTS | ONCE:
        runs = [run["summary"] for key, run in results.runs.items() if key.rpartition(",")[0] == name]
        rows.append(
            [
                name,
                mean_and_spread(column(runs, "accuracy")),
                mean_and_spread(column(runs, "accuracy_by_tier", "small")),
                mean_and_spread(column(runs, "client_accuracy", "worst_decile")),
                mean_and_spread(column(runs, "expert_load_cv")),
                str(len(runs)),
            ]
        )
    print(markdown(["variant", "accuracy", "at k = 1", "client worst decile", "expert load CV", "seeds"], rows))


if __name__ == "__main__":
    main()
