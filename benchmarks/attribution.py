"""Measure the effect of each measure against skew: `python benchmarks/attribution.py --data ../shared/data`.

Each measure is tested with FFT-MoE and with LoRA. The figures are on held-out training rows, so that they may be used
to choose settings; the test rows of `recipes/grid/` are not used. After a stop the same command continues from its
work folder.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common import RESULTS, keep_comparison, markdown
from fftmoe.comparison.run import compare
from fftmoe.comparison.tables import tables
from fftmoe.config import recipe_folder
from fftmoe.errors import InputError, did_you_mean
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

PARTITIONS = ("iid", "dirichlet:0.1", "shards:1")
HELD_OUT = 800  # training rows that take the place of the test rows
MOMENTUM = {
    "federation.server_optimizer": "momentum",
    "federation.server_beta1": 0.8,
    "federation.learning_rate": 2e-3,
}
AVERAGE = {"federation.ema_decay": 0.6}
OURS = {"method": "fft-moe", "federation.aggregation": "fedavg"}
LORA = {"method": "fedit"}
SOLVED, AVERAGED = {"head.kind": "closed-form"}, {"head.kind": "averaged"}
EXPERTS_ALONE = {
    "adapter.shared_rank": 0,
    "adapter.expert_dim": 16,
    "adapter.num_experts": 16,
    "adapter.scale": 1.0,
    "budgets.small.experts": 4,
    "budgets.medium.experts": 8,
    "budgets.large.experts": 16,
    "federation.aggregation": "per-expert",
}
OURS_LINEAR = OURS | {"adapter.shared_targets": "all-linear", "adapter.shared_rank": 7}  # costs what 32 of q and v does
LORA_LINEAR = LORA | {"lora.targets": "all-linear"}
VARIANTS = (
    Variant("fft-moe, solved head, momentum", OURS | SOLVED | MOMENTUM),
    Variant("… without momentum", OURS | SOLVED),
    Variant("… experts at full scale", OURS | SOLVED | MOMENTUM | {"adapter.scale": 1.0}),
    Variant("… experts alone, per expert", OURS | SOLVED | MOMENTUM | EXPERTS_ALONE),
    Variant("fedit, solved head, momentum", LORA | SOLVED | MOMENTUM),
    Variant("… as published", LORA | SOLVED),
    Variant("fft-moe, averaged head, moving average", OURS | AVERAGED | AVERAGE),
    Variant("… without moving average", OURS | AVERAGED),
    Variant("fedit, averaged head, moving average", LORA | AVERAGED | AVERAGE),
    Variant("… as published, averaged head", LORA | AVERAGED),
    Variant("fft-moe, all linear layers, solved head, momentum", OURS_LINEAR | SOLVED | MOMENTUM),
    Variant("fedit, all linear layers, solved head, momentum", LORA_LINEAR | SOLVED | MOMENTUM),
    Variant("fft-moe, all linear layers, averaged head, moving average", OURS_LINEAR | AVERAGED | AVERAGE),
    Variant("fedit, all linear layers, averaged head, moving average", LORA_LINEAR | AVERAGED | AVERAGE),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="trec6", help="a text recipe of recipes/grid/; default trec6")
    parser.add_argument("--data", type=Path, required=True, help="folder with this data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder of the runs; default runs/attribution-<on>")
    parser.add_argument(
        "--results", type=Path, help="file of the results; default benchmarks/results/attribution-<on>.json"
    )
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")
    parsed = parser.parse_args(arguments)
    parsed.work = parsed.work or Path("runs") / f"attribution-{parsed.on}"
    parsed.results = parsed.results or RESULTS / f"attribution-{parsed.on}.json"
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    files = {file.stem: file for file in (recipe_folder() / "grid").glob("*.yaml")}
    if parsed.on not in files:
        raise InputError(f"--on {parsed.on}: no recipe of that name in recipes/grid{did_you_mean(parsed.on, files)}")
    comparison = compare(
        files[parsed.on],
        parsed.work,
        variants=VARIANTS,
        partitions=PARTITIONS,
        seeds=parsed.seeds,
        overrides={"data.source": str(parsed.data / parsed.on), "data.validation_examples": HELD_OUT},
        workers="auto",
        deadline=None if parsed.seconds is None else time.monotonic() + parsed.seconds,
        progress=Progress(Console()),
    )
    keep_comparison(parsed.work, parsed.results)
    for table in tables(comparison):
        print(f"\n## {table.title}\n\n{markdown(table.header, table.rows)}")


if __name__ == "__main__":
    main()
