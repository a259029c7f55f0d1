"""Compare heads for several labels, numbers and tags: `python benchmarks/solved_heads.py --data FOLDER`.

FOLDER has hwu64/train.parquet, short texts with an intent. Three tasks are made of 3,000 of its training rows, of which
1,000 are measured on: several labels are the intent and its scenario; numbers are the length in words, and a number
drawn for each intent with noise of half its spread; tags are one of three families of frequent words, and whether the
word before is frequent too. Clients are the eighteen scenarios, or twenty with IID rows. Everything else has its
default. After a stop the same command continues from its work folder.
"""

import argparse
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console

from common import RESULTS, keep_comparison, markdown
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import CellResult
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

TRAIN, TEST, FREQUENT, FAMILIES, NOISE = 2000, 1000, 400, "ABC", 0.5
TASKS: dict[str, dict[str, Any]] = {
    "several labels": {"backbone": {"task": "multi-label-classification"}, "data": {"label": "labels"}},
    "numbers": {"backbone": {"task": "regression"}, "data": {"targets": ["words", "meaning"]}},
    "tags": {"backbone": {"task": "token-classification"}, "data": {"tokens": "tokens", "tags": "tags"}},
}
PARTITIONS = {"natural": {"kind": "natural", "by": "client"}, "IID": {"kind": "iid", "num_clients": 20}}
OURS = "solved at every measurement"
VARIANTS = (
    Variant(OURS),
    Variant("solved at the start and the end", {"head.every": 10}),
    Variant("trained and averaged", {"head.kind": "averaged"}),
    Variant("FedIT, solved at every measurement", {"method": "fedit"}),
)
HEADER = ("task", "clients", "metric", "before the first round", *(variant.label for variant in VARIANTS))


def rows_of(source: Path) -> list[dict[str, Any]]:
    """The rows of all tasks, in an order of chance that is always the same."""
    table: Any = datasets.load_dataset("parquet", data_files=str(source), split="train")
    draws = np.random.default_rng(0)
    chosen = table.select(draws.permutation(len(table))[: TRAIN + TEST])
    meaning = {intent: float(draws.normal()) for intent in sorted(set(table["label"]))}
    texts = [row["text"].split() for row in chosen]
    frequent = {word for word, _ in Counter(word for words in texts for word in words).most_common(FREQUENT)}
    return [
        {
            "text": row["text"],
            "client": row["label"].split("_")[0],
            "labels": [row["label"], row["label"].split("_")[0]],
            "words": float(len(words)),
            "meaning": round(meaning[row["label"]] + NOISE * float(draws.normal()), 4),
            "tokens": words,
            "tags": [*tags_of(words, frequent)],
        }
        for row, words in zip(chosen, texts, strict=True)
    ]


def tags_of(words: Sequence[str], frequent: set[str]) -> Iterator[str]:
    """For each word its family, followed by x where the word before it is rare; O for a rare word."""
    for place, word in enumerate(words):
        family = FAMILIES[zlib.crc32(word.encode()) % len(FAMILIES)]
        after_rare = place and words[place - 1] not in frequent
        yield "O" if word not in frequent else f"{family}x" if after_rare else family


def write_data(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(source)
    for split, own in (("train", rows[:TRAIN]), ("test", rows[TRAIN:])):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own))


def values_of(task: str, clients: str, data: Path) -> dict[str, Any]:
    """The recipe of a task: its data, and nothing else."""
    own = TASKS[task]
    return {
        "name": f"{task}, {clients}",
        "backbone": own["backbone"],
        "data": {"source": str(data), **({"text": "text"} if task != "tags" else {}), **own["data"]},
        "partition": PARTITIONS[clients],
        "evaluation": {"baselines": "off"},
        "trackers": [],
    }


def file_name(task: str, clients: str) -> str:
    return f"{task}-{clients}".replace(" ", "-").lower()


def row(task: str, clients: str, cells: Sequence[CellResult]) -> list[str]:
    """The metric of every variant, a mean over the seeds."""
    done = {
        variant.label: [c for c in cells if c.variant == variant.label and c.status == "done"] for variant in VARIANTS
    }
    metric = next(cell.metric for own in done.values() for cell in own)
    first = [next(float(line[metric]) for line in cell.rows if line["round"] == 0) for cell in done[OURS]]
    last = [[float(cell.summary[metric]) for cell in own] for own in done.values()]
    return [task, clients, metric.replace("_", " "), *(_mean(values) for values in (first, *last))]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with hwu64/train.parquet")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/solved-heads"), help="folder of the runs")
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")
    parsed = parser.parse_args(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    data, table = (parsed.work / "data").resolve(), []
    if not data.exists():
        write_data(parsed.data / "hwu64" / "train.parquet", data)
    for task in TASKS:
        for clients in PARTITIONS:
            name = file_name(task, clients)
            comparison = compare(
                values_of(task, clients, data),
                parsed.work / name,
                variants=VARIANTS,
                seeds=parsed.seeds,
                workers="auto",
                deadline=deadline,
                progress=Progress(Console()),
            )
            keep_comparison(parsed.work / name, RESULTS / f"solved-heads-{name}.json")
            table.append(row(task, clients, comparison.cells))
            print(markdown(HEADER, table), flush=True)


if __name__ == "__main__":
    main()
