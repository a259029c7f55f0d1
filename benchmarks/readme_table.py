"""Make the table of the README: `python benchmarks/readme_table.py`, about eight minutes a seed on two cores.

The quickstart runs as it is, with its baselines, and once more with FedIT in place of FFT-MoE: same data, clients,
head, server and steps, and the same personal answers on clients' own data. Summaries are in
`results/readme_table.json`; a run that is there is not run again. `--output RUN` keeps one more run of the quickstart,
from which `python docs/make_images.py RUN` makes the pictures.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, Results, markdown
from fftmoe.comparison.statistics import estimate
from fftmoe.comparison.tables import with_interval
from fftmoe.config import load_recipe
from fftmoe.setup.run import run

HEADER = ("", "accuracy on everyone's test rows", "on clients' own data, mean", "worst client", "MiB down / up")
FEDIT = ("method=fedit", "evaluation.baselines=off")
MIB = 2**20

Summary = Mapping[str, Any]


def table(ours: Sequence[Summary], fedit: Sequence[Summary]) -> str:
    """A row for each way to train: the means over the seeds, with their 95 % intervals where there are several."""
    head_only, all_alone, centralized = (
        _shown([float(summary["baselines"][name]["value"]) for summary in ours])
        for name in ("head_only", "alone", "centralized")
    )
    rows = [
        _of_run("**FFT-MoE**", ours),
        _of_run("FedIT: LoRA with federated averaging, the same head and server", fedit),
        ["the solved head alone, nothing trained", head_only, "–", "–", "–"],
        ["a client alone, on its own rows", all_alone, own(ours, "alone", "mean"), own(ours, "alone", "worst"), "–"],
        ["all rows in one place, the same steps", centralized, "–", "–", "–"],
    ]
    return markdown(HEADER, rows)


def lead(ours: Sequence[Summary], fedit: Sequence[Summary]) -> str:
    """The lead of FFT-MoE over FedIT in points: the mean over pairs of runs with one seed, and its 95 % interval."""
    return with_interval(
        estimate([100 * (one["accuracy"] - other["accuracy"]) for one, other in zip(ours, fedit, strict=True)]), "+.1f"
    )


def _of_run(name: str, summaries: Sequence[Summary]) -> list[str]:
    down, up = (
        round(sum(each[key] for each in summaries) / len(summaries) / MIB) for key in ("bytes_down", "bytes_up")
    )
    everyone = _shown([summary["accuracy"] for summary in summaries])
    return [name, everyone, own(summaries, "personal", "mean"), own(summaries, "personal", "worst"), f"{down} / {up}"]


def own(summaries: Sequence[Summary], way: str, of_clients: str) -> str:
    """What clients have on their own data: `alone`, `global` or `personal`; their `mean`, or the `worst` client."""
    return _shown([summary["own_data"][way][of_clients] for summary in summaries])


def _shown(values: Sequence[float]) -> str:
    return with_interval(estimate(values))


def stored(results: Results, seeds: int) -> tuple[Sequence[Summary], Sequence[Summary]]:
    """The summaries of both methods, seed by seed; what is missing is run."""
    ours = [results.run(f"fft-moe, seed {seed}", "quickstart", [f"seed={seed}"]) for seed in range(seeds)]
    fedit = [results.run(f"fedit, seed {seed}", "quickstart", [f"seed={seed}", *FEDIT]) for seed in range(seeds)]
    return ours, fedit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="keep a run of the quickstart in this folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parsed = parser.parse_args(arguments)
    if parsed.output is not None:
        run(load_recipe("quickstart"), parsed.output)
    ours, fedit = stored(Results(parsed.results / "readme_table.json"), parsed.seeds)
    print(table(ours, fedit))
    print(f"FFT-MoE less FedIT, in points: {lead(ours, fedit)}")


if __name__ == "__main__":
    main()
