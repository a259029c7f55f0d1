"""Time federated tuning of a language model, trick by trick: `python benchmarks/language_speed.py --data FOLDER`.

FOLDER has train.parquet with the columns prompt, completion and domain. Two domains are two clients. Each way trains
both for some rounds, from the same adapter, on as many steps of as many examples, in a process of its own:

- `naive` is what people write with transformers and PEFT: float32, logits at all places, shuffled batches, a plain loop
  over clients, and the mean of their adapters;
- the others are the clients of this package, each with one trick more than the one before it.

Ways on one thread are compared by processor time, so other work on the machine counts little. The last two rows, on two
cores, are compared by the clock. The ways run in turn, several times. Peaks are of resident memory of the process with
all its libraries, 0.5 GiB of which no way can avoid; those of worker processes are added, shared pages too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from common import RESULTS, machine, markdown, write_result
from fftmoe.backbones import first_adapted_block
from fftmoe.backbones.find import resolve_model
from fftmoe.client.update import local_batches
from fftmoe.config import Recipe, load_recipe
from fftmoe.data import cached_states, default_cache_dir
from fftmoe.engines.base import Engine
from fftmoe.engines.memory import peak_rss_mib
from fftmoe.records import RoundPlan, ServerState, names
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.store import RunFolder

MODEL, BATCH, RATE, RANK = "builtin:smollm2", 8, 1e-3, 8
CLIENTS = 2
ALL, LAST = "adapter.blocks=all", "adapter.blocks=last-third"


@dataclass(frozen=True)
class Way:
    """One way to train: what it is called in the table, and what of a recipe makes it.

    Attributes:
        changes: overrides of the recipe; None for the plain loop.
        threads: of torch in this process. workers: processes that train clients.
    """

    title: str
    changes: tuple[str, ...] | None
    threads: int = 1
    workers: int = 1


LORA = ("method=fedit", ALL, "budgets=[{name: all, fraction: 1, top_k: 3, experts: 3}]")
FLOAT32, SHUFFLED = "engine.precision=float32", "federation.group_by_length=false"
LAST_CACHED = ("method=fft-moe", LAST)
WAYS: Mapping[str, Way] = {
    "naive": Way("transformers, PEFT and a plain loop", None),
    "labels": Way("clients of this package: logits at learned tokens only", (*LORA, FLOAT32, SHUFFLED)),
    "bfloat16": Way("+ bfloat16, weights as they are stored", (*LORA, SHUFFLED)),
    "length": Way("+ batches of like length", LORA),
    "experts": Way("experts in place of LoRA, as many active parameters", ("method=fft-moe", ALL)),
    "last": Way("experts in the last third of the blocks, states below them cached", LAST_CACHED),
    "cached": Way("the same, where the states are there already", LAST_CACHED),
    "naive, two cores": Way("transformers, PEFT and a plain loop, two threads", None, threads=2),
    "workers": Way("the last third, states cached, two workers", LAST_CACHED, workers=2),
}
ON_TWO_CORES = ("naive, two cores", "workers")


def write_data(source: Path, folder: Path, rows: int) -> None:
    """The first rows of the first domains, and a few rows to test on."""
    table: Any = datasets.load_dataset("parquet", data_files=str(source / "train.parquet"), split="train")
    domains = sorted(set(table["domain"]))[:CLIENTS]
    folder.mkdir()
    for split, start, number in (("train", 0, rows), ("test", rows, 4)):
        own = [[row for row in table if row["domain"] == domain][start : start + number] for domain in domains]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for part in own for row in part))


def recipe_of(way: Way, data: Path, steps: int) -> Recipe:
    """The recipe of a way: one tier, of whose experts a token activates as many parameters as LoRA has."""
    values = {
        "name": "language-speed",
        "backbone": {"model": MODEL, "task": "causal-lm"},
        "data": {"source": str(data), "prompt": "prompt", "completion": "completion", "validation": "off"},
        "partition": {"kind": "natural", "by": "domain"},
        "adapter": {"shared_rank": RANK},
        "budgets": [{"name": "all", "fraction": 1.0, "top_k": 3, "experts": 9}],
        "federation": {"local_steps": steps, "batch_size": BATCH, "learning_rate": RATE},
        "evaluation": {"baselines": "off"},
        "engine": {"precision": "auto"},
        "trackers": [],
    }
    return load_recipe(values, (*(way.changes or LORA), f"engine.workers={way.workers}"))


def plan_of(e: Experiment, state: ServerState, number: int) -> RoundPlan:
    """What both clients do in a round; its number decides their batches."""
    return plan_round(e.method, state, number, range(CLIENTS), e.budgets, e.training, e.recipe.seed)


@dataclass
class Rounds:
    """Rounds of both clients over an engine, without the measurements of a run."""

    experiment: Experiment
    engine: Engine
    state: ServerState

    def __call__(self, number: int) -> float:
        """Train both clients and merge; the mean of their losses."""
        e = self.experiment
        exchange = Exchange(self.engine, expectations(e), Ledger())
        plan = plan_of(e, self.state, number)
        updates = list(exchange.updates(plan, partial(e.method.download, self.state)))
        self.state, _ = e.method.aggregate(self.state, updates)
        return statistics.mean(update.metrics["loss"] for update in updates)


class PlainLoop:
    """What people write: every client trains the adapter from the same start, and the results are averaged."""

    def __init__(self, experiment: Experiment, state: ServerState) -> None:
        self.experiment, self.state = experiment, state
        bare: Any = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL), dtype=torch.float32)
        first = {name: tensor for name, tensor in state.tensors.items() if names.parse(name).part == "A"}
        rank = next(iter(first.values())).shape[0]
        scale = experiment.recipe.lora.scale
        config = LoraConfig(r=rank, lora_alpha=round(scale * rank), target_modules="all-linear")
        self.model: Any = get_peft_model(bare, config)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():  # the same start as in all other ways
            for name, tensor in first.items():
                self.trained[f"base_model.model.{names.parse(name).owner}.lora_A.default.weight"].copy_(tensor)
        self.everyone = {name: p.detach().clone() for name, p in self.trained.items()}

    def __call__(self, number: int) -> float:
        """Train both clients and average; the mean of their losses."""
        e, results, losses = self.experiment, [], []
        for plan in plan_of(e, self.state, number).clients:
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(self.everyone[name])
            optimizer = torch.optim.AdamW(self.trained.values(), lr=RATE, weight_decay=0.0)
            plan = replace(plan, training=replace(plan.training, group_by_length=False))
            for rows in local_batches(plan, e.partition.indices[plan.client_id], e.train):
                loss = self.model(**e.train.batch(rows)).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            results.append({name: p.detach().clone() for name, p in self.trained.items()})
        self.everyone = {name: sum(own[name] for own in results) / len(results) for name in results[0]}
        return statistics.mean(losses)


def train(name: str, data: Path, steps: int, rounds: int, cache: Path) -> dict[str, Any]:
    """Train in one way, in this process; what it took, and the loss of every round.

    Libraries and the model are loaded before the clock starts; states below the adapter are computed while it runs.
    """
    way, folder = WAYS[name], cache / "run"
    torch.set_num_threads(way.threads)
    recipe = recipe_of(way, data, steps)
    resolve_model(MODEL)
    started, processor = time.perf_counter(), time.process_time()
    experiment = compose(recipe)  # computes the states
    composing = time.perf_counter() - started, time.process_time() - processor
    flop = 4 * block_parameters(experiment)  # forward, and backward to the states only
    state = experiment.method.init(experiment.model)
    with ExitStack() as stack:
        if way.changes is None:
            one: Any = PlainLoop(replace(experiment, model=None), state)  # which has a model of its own
        else:
            folder.mkdir(parents=True)
            one = Rounds(experiment, stack.enter_context(closing(open_engine(experiment, RunFolder(folder)))), state)
        if way.workers > 1:
            one(0)  # the workers load their models
            one.state = state
        started, processor = time.perf_counter(), time.process_time()
        losses = [one(number + 1) for number in range(rounds)]
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        peak = peak_rss_mib() if way.changes is None else one.engine.peak_rss_mib()
    return {
        "seconds": seconds,
        "processor": processor,
        "compose": composing,
        "losses": losses,
        "peak_mib": peak,
        "flop_per_token": flop,
        "tokens": int(experiment.mean_tokens * BATCH * steps * rounds * CLIENTS),
    }


def peak_of_machine() -> float:
    """FLOP a second of one thread on a large product in bfloat16, or in float32 where that is faster."""
    torch.set_num_threads(1)
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        for _ in range(5):
            started = time.process_time()
            torch.mm(a, b)
            best = max(best, 2 * 2048**3 / (time.process_time() - started))
    return best


def block_parameters(experiment: Experiment) -> int:
    """The frozen weights of the blocks that a training step runs."""
    first = first_adapted_block(experiment.model) if cached_states(experiment.train) is not None else 0
    blocks = next(m for n, m in experiment.model.named_modules() if n.endswith(".layers"))
    return sum(p.numel() for block in blocks[first:] for p in block.parameters() if not p.requires_grad)


def ask(name: str, data: Path, parsed: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Train in one way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "last":  # its states must not be there yet
            (Path(folder) / "cache").mkdir()
            (Path(folder) / "cache" / "models").symlink_to(cache / "models")
            cache = Path(folder) / "cache"
        environment = {**os.environ, "FFTMOE_CACHE": str(cache), "OMP_NUM_THREADS": str(WAYS[name].threads)}
        sizes = ["--steps", str(parsed.steps), "--rounds", str(parsed.rounds)]
        command = [sys.executable, __file__, "--data", str(data), "--way", name, "--folder", folder, *sizes]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "load": os.getloadavg()[0]}


def seconds_of(name: str, repetition: Mapping[str, Any]) -> float:
    """What is compared: processor time, or on two cores that of the clock; with the states where they count."""
    found = repetition[name]
    if name in ON_TWO_CORES:
        return found["seconds"]
    states = found["compose"][1] - repetition["cached"]["compose"][1] if name == "last" else 0.0
    return found["processor"] + max(0.0, states)


def table(repetitions: list[dict[str, Any]], peak: float, steps: int) -> str:
    """One row for each way."""
    rows = []
    for name, way in WAYS.items():
        base = ON_TWO_CORES[0] if name in ON_TWO_CORES else "naive"
        ratios = sorted(seconds_of(base, one) / seconds_of(name, one) for one in repetitions)
        own = [one[name] for one in repetitions]
        taken = statistics.median(seconds_of(name, one) for one in repetitions)
        memory = statistics.median(one["peak_mib"] for one in own)
        of_naive = memory / statistics.median(one["naive"]["peak_mib"] for one in repetitions)
        share = own[0]["tokens"] / taken * own[0]["flop_per_token"] / peak / way.workers
        rows.append(
            (
                way.title,
                f"{1000 * taken / steps:.0f}",
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                f"{memory:.0f} ({of_naive:.2f})",
                " ".join(f"{loss:.4f}" for loss in own[0]["losses"]),
                f"{share:.0%}" if name not in ON_TWO_CORES[:1] else "",
            )
        )
    header = (
        "way",
        "ms a step of 8 examples",
        "times as fast as the plain loop",
        "peak, MiB (share)",
        "loss by round",
        "of the peak of a product",
    )
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet")
    parser.add_argument("--steps", type=int, default=4, help="of a client in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "language_speed.json")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.way:
        print(json.dumps(train(parsed.way, parsed.data, parsed.steps, parsed.rounds, parsed.folder)))
        return
    cache, repetitions = default_cache_dir(), []
    assert cache is not None, "this user has a home folder"
    resolve_model(MODEL)  # converts it once
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(parsed.data, data, parsed.steps * BATCH * parsed.rounds)
        ask("cached", data, parsed, cache)
        peak = peak_of_machine()
        for _ in range(parsed.repetitions):
            repetitions.append({name: ask(name, data, parsed, cache) for name in WAYS})
            print(table(repetitions, peak, parsed.steps * parsed.rounds * CLIENTS), flush=True)
    write_result(parsed.results, {"machine": machine(), "peak_flops": peak, "repetitions": repetitions}, "repetitions")


if __name__ == "__main__":
    main()
