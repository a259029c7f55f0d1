"""Compare the export formats of one run: `python benchmarks/exports.py --data FOLDER`.

The script measures size, loading time, latency and accuracy. FOLDER holds `trec6/` with train and test (default: the
quickstart's own texts). `--run RUN` takes a finished run. Every format computes on one thread of the CPU in float32 on
the same batches. The formats are timed several times in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fftmoe
from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.backbones import logits
from fftmoe.config import load_recipe
from fftmoe.data import Examples, evaluation_batches
from fftmoe.exports.check import difference
from fftmoe.exports.folder import size_of
from fftmoe.exports.load import reload
from fftmoe.setup.finished import finished_run, recipe_of
from fftmoe.setup.load import load_split
from fftmoe.setup.run import run
from fftmoe.trained.run import FinishedRun

RANKS = (4, 16, 64)
STEPS = 100
TIMES = 5  # of one batch
BATCH = 16

Batch = dict[str, Tensor]
Answer = Callable[[Batch], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--run", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        finished = arguments.run or trained_run(Path(folder) / "run", arguments.data)
        result = measure(finished, Path(folder))
    write_result(RESULTS / "exports.json", result, "forms")
    show(result)


def trained_run(folder: Path, data: Path | None) -> Path:
    """Train the quickstart, or its recipe on questions by type."""
    overrides = [TRAINED_HEAD, "evaluation.local_only=false", "trackers=[]"]
    if data is not None:
        overrides += [f"data.source={data / 'trec6'}", "data.max_length=48", "name=trec6"]
    return run(load_recipe("paper", overrides), folder).folder


def measure(finished: Path, folder: Path) -> dict[str, Any]:
    described = finished_run(finished)
    examples = load_split(recipe_of(finished), "test", described.label_names)
    client = next(c for c in range(100) if (finished / "clients" / f"{c:06d}").is_dir())
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "peft": ("peft", {}),
        f"personal, client {client}": ("personal", {"client": client}),
        "personal, tier small": ("personal", {"tier": "small"}),
        "torch-export": ("torch-export", {}),
        "onnx": ("onnx", {}),
        **{f"lora, rank {rank}": ("lora", {"rank": rank, "steps": STEPS}) for rank in RANKS},
    }
    made = {}
    for place, (name, (to, options)) in enumerate(wanted.items()):
        begun = time.perf_counter()
        about = fftmoe.export(finished, to, folder / str(place), **options)
        made[name] = {"folder": folder / str(place), "seconds": time.perf_counter() - begun, "about": about}
        print(f"{name}: written in {made[name]['seconds']:.0f} s", flush=True)
    opened = {name: load(described, one["about"]["format"], one["folder"]) for name, one in made.items()}
    seconds = latencies({name: answer for name, (answer, _) in opened.items()}, batches(examples)[:3])
    expected = [answered for batch in batches(examples) for answered in [opened["peft"][0](batch)]]
    rows = {}
    for name, (answer, load_seconds) in opened.items():
        found = [answer(batch) for batch in batches(examples)]
        rows[name] = {
            "bytes": size_of(made[name]["folder"]),
            "written_seconds": made[name]["seconds"],
            "load_ratio": load_seconds / opened["peft"][1],
            "latency_ratio": seconds[name] / seconds["peft"],
            "accuracy": accuracy(found, examples),
            "difference_from_peft": difference(found, expected),
            "export": {key: value for key, value in made[name]["about"].items() if key != "run"},
        }
    return {"machine": machine(), "run": made["peft"]["about"]["run"], "examples": len(examples), "forms": rows}


def batches(examples: Examples) -> list[Batch]:
    made = [examples.batch(rows) for rows in evaluation_batches(examples, BATCH)]
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in made]


def accuracy(found: Sequence[Tensor], examples: Examples) -> float:
    order = torch.cat(evaluation_batches(examples, BATCH))
    return float((torch.cat(list(found)).argmax(1) == examples.labels[order]).double().mean())


def load(run: FinishedRun, form: str, folder: Path) -> tuple[Answer, float]:
    """Return a function from a batch to logits, and the seconds that loading it takes."""
    begun = time.perf_counter()
    if form == "onnx":
        answer = onnx_answer(folder / "model.onnx")
    elif form == "torch-export":
        answer = graph_answer(folder / "model.pt2")
    else:
        answer = model_answer(reload(run, folder))
    return answer, time.perf_counter() - begun


def model_answer(model: Any) -> Answer:
    def answer(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return logits(model, batch)

    return answer


def graph_answer(path: Path) -> Answer:
    graph = torch.export.load(path).module()

    def answer(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return graph(**batch)

    return answer


def onnx_answer(path: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {name: v.numpy() for name, v in batch.items()})[0])


def latencies(answers: dict[str, Answer], some: Sequence[Batch]) -> dict[str, float]:
    """Return the median seconds of a batch. All formats take turns, so that a busy moment affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in answers}
    for turn in range(TIMES + 1):
        for batch in some:
            for name, answer in answers.items():
                begun = time.perf_counter()
                answer(batch)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(own) for name, own in seconds.items()}


def show(result: dict[str, Any]) -> None:
    lines = []
    for name, row in result["forms"].items():
        errors = row["export"].get("relative_error", {})
        lines.append(
            (
                name,
                f"{row['bytes'] / 2**20:.2f}",
                f"{row['load_ratio']:.2f}",
                f"{row['latency_ratio']:.2f}",
                f"{row['accuracy']:.3f}",
                f"{row['difference_from_peft']:.1e}",
                ", ".join(f"{error:.3f}" for error in errors.values()) or "–",
            )
        )
    heads = ("form", "MiB", "load ÷ peft", "latency ÷ peft", "accuracy", "max difference", "LoRA's error by block")
    print(markdown(heads, lines))


if __name__ == "__main__":
    main()
