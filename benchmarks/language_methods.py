"""Compare methods on a real language model: `python benchmarks/language_methods.py --data FOLDER`.

FOLDER has train.parquet and test.parquet with the columns prompt, completion and domain, as flan8. Each domain is
dealt out to three clients, so 24 clients with eight unlike tasks and three budgets tune SmolLM2-135M. All methods send
as many bytes (`lora.match: uplink`), adapt the same blocks and take the same steps; everything else has its default.
The figures are on test rows; no setting was chosen with them. After a stop the same command continues from its work
folder.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console

from common import RESULTS, keep_comparison, markdown
from fftmoe.comparison.run import compare
from fftmoe.comparison.tables import tables
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

METHODS = ("fft-moe", "fedit", "hetlora", "fedsa-lora", "local-only")
CLIENTS_OF_DOMAIN = 3


def write_data(source: Path, folder: Path, rows: int, test_rows: int) -> None:
    """So many rows of each domain, dealt out to its clients in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, most in (("train", rows), ("test", test_rows)):
        table: Any = datasets.load_dataset("parquet", data_files=str(source / f"{split}.parquet"), split="train")
        lines = []
        for domain in sorted(set(table["domain"])):
            own = [row for row in table if row["domain"] == domain][:most]
            for number, row in enumerate(own):
                pair = {"prompt": row["prompt"], "completion": row["completion"]}
                lines.append({**pair, "client": f"{domain}-{number % CLIENTS_OF_DOMAIN + 1}", "label": domain})
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def values_of(data: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    """The recipe of all methods."""
    return {
        "name": "language-methods",
        "backbone": {"model": "builtin:smollm2", "task": "causal-lm"},
        "data": {"source": str(data), "prompt": "prompt", "completion": "completion", "validation": "off"},
        "partition": {"kind": "natural", "by": "client"},
        "adapter": {"blocks": "last-third"},
        "federation": {"rounds": parsed.rounds, "clients_per_round": 8, "batch_size": 8, "local_steps": 8},
        "evaluation": {"every": parsed.rounds, "baselines": "off"},
        "trackers": [],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", type=int, default=300, help="training rows of a domain")
    parser.add_argument("--test-rows", type=int, default=60, help="test rows of a domain")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--work", type=Path, default=Path("runs/language-methods"))
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")
    parsed = parser.parse_args(arguments)
    data = parsed.work / "data"
    if not data.exists():
        write_data(parsed.data, data, parsed.rows, parsed.test_rows)
    comparison = compare(
        values_of(data.resolve(), parsed),
        parsed.work / "comparison",
        variants=[Variant(method, {"method": method}) for method in parsed.methods.split(",")],
        workers="auto",
        deadline=None if parsed.seconds is None else time.monotonic() + parsed.seconds,
        progress=Progress(Console(stderr=True)),
        seeds=parsed.seeds,
    )
    keep_comparison(parsed.work / "comparison", RESULTS / "language_methods.json")
    for table in tables(comparison):
        print(f"\n## {table.title}\n\n{markdown(table.header, table.rows)}", flush=True)


if __name__ == "__main__":
    main()
