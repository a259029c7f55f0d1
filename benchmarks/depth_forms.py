"""Compare where a language model is adapted, at equal time: `python benchmarks/depth_forms.py`.

One client has the rows of the builtin instructions, and tunes the builtin language model:

- `all`: experts in every block;
- `last third`: experts in the last third of the blocks, from cached states below them;
- `progressive`: the last third first, then all blocks, which go on from it;
- `side`: experts that read the cached states of the last third of the frozen blocks, and add to the last hidden state.
  Nothing runs through the backbone again. They are computed at the places before learned tokens only, since experts
  compute each token by itself.

Each point of the table is the perplexity on held-out training rows after so many steps, and the processor time of the
training until then, with the caches that it needs. Other work on the machine counts little.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import RESULTS, machine, markdown, write_result
from fftmoe.backbones import resolve_model, token_losses
from fftmoe.client.update import local_batches
from fftmoe.config import load_recipe
from fftmoe.data import IGNORED, default_cache_dir, evaluation_batches
from fftmoe.records import ServerState
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.federation import make_measure
from fftmoe.store import RunFolder

MODEL, BATCH, STEPS, HELD_OUT = "builtin:smollm2", 8, 16, 192  # steps of a round
EXPERTS, DIM, TOP_K, RANK = 32, 4, 3, 8  # of a side expert, as an adapter has them by default
SIDE_RATES = (1e-3, 4e-3, 1.6e-2)
Points = list[dict[str, float]]


def experiment_of(blocks: str, rounds: int) -> Experiment:
    """One client with all rows."""
    values = {
        "name": "depth",
        "backbone": {"model": MODEL, "task": "causal-lm"},
        "data": {
            "source": "builtin:stdlib-instructions",
            "prompt": "prompt",
            "completion": "completion",
            "validation": "off",
            "validation_examples": HELD_OUT,
        },
        "partition": {"kind": "iid", "num_clients": 1},
        "budgets": [{"name": "all", "fraction": 1.0, "top_k": TOP_K, "experts": 9}],
        "federation": {"rounds": rounds, "local_steps": STEPS, "batch_size": BATCH, "clients_per_round": 1},
        "evaluation": {"baselines": "off"},
        "engine": {"workers": 1},
        "trackers": [],
    }
    return compose(load_recipe(values, (f"adapter.blocks={blocks}",)))


@dataclass
class Clock:
    """Adds up processor time between `start` and `stop`."""

    seconds: float = 0.0
    started: float = field(default=0.0, repr=False)

    def start(self) -> None:
        """Count from now on."""
        self.started = time.process_time()

    def stop(self) -> None:
        """Count no further."""
        self.seconds += time.process_time() - self.started


def rounds_of(e: Experiment, state: ServerState, first: int, rounds: int, clock: Clock) -> Iterator[ServerState]:
    """The state after each of these rounds; `clock` has the time of training."""
    measure = make_measure(e)
    with TemporaryDirectory() as folder, closing(open_engine(e, RunFolder(Path(folder)))) as engine:
        for number in range(first, first + rounds):
            clock.start()
            plan = plan_round(e.method, state, number, [0], e.budgets, e.training, e.recipe.seed)
            exchange = Exchange(engine, expectations(e), Ledger())
            state, _ = e.method.aggregate(state, list(exchange.updates(plan, partial(e.method.download, state))))
            clock.stop()
            measure.install(state, e.largest)
            yield state


def perplexity(e: Experiment) -> float:
    """Of the model as it is, on the held-out rows."""
    return make_measure(e).tally(e.test).metrics()["perplexity"]


def adapted(*parts: tuple[str, int]) -> Points:
    """Train experts in the model, in these blocks for so many rounds, one part after another."""
    points: Points = []
    clock, state, done = Clock(), None, 0
    for blocks, rounds in parts:
        clock.start()
        e = experiment_of(blocks, rounds)
        clock.stop()
        fresh = e.method.init(e.model)
        start = fresh if state is None else replace(fresh, tensors={**fresh.tensors, **state.tensors})
        for after in rounds_of(e, start, done + 1, rounds, clock):
            state, done = after, done + 1
            points.append({"steps": done * STEPS, "seconds": clock.seconds, "perplexity": perplexity(e)})
            print(blocks, points[-1], flush=True)
    return points


class SideExperts(nn.Module):
    """Experts of one tap: what they add to the side path, from the tap's states and the path so far."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.router = nn.RMSNorm(size), nn.Linear(size, EXPERTS, bias=False)
        self.down, self.up = nn.Linear(size, EXPERTS * DIM), nn.Linear(EXPERTS * DIM, size)
        self.shared_a, self.shared_b = nn.Linear(size, RANK, bias=False), nn.Linear(RANK, size, bias=False)
        for last in (self.up.weight, self.up.bias, self.shared_b.weight):
            nn.init.zeros_(last)

    def forward(self, states_ND: Tensor, side_ND: Tensor) -> Tensor:
        """What is added to `side_ND`."""
        read_ND = self.norm(states_ND + side_ND)
        best = self.router(read_ND).topk(TOP_K)
        gates_NE = torch.zeros(len(read_ND), EXPERTS).scatter(1, best.indices, best.values.softmax(1))
        inner_ND = F.gelu(self.down(read_ND)) * gates_NE.repeat_interleave(DIM, 1)
        return self.up(inner_ND) + self.shared_b(self.shared_a(read_ND))


@dataclass(frozen=True)
class Taps:
    """The frozen states before learned tokens: for each row [N, K + 1, D], the last one after all blocks."""

    states: list[Tensor]
    labels: list[Tensor]


@torch.inference_mode()
def taps_of(e: Experiment, split: str) -> Taps:
    """Run the frozen model once over these rows."""
    examples: Any = getattr(e, split)
    blocks = next(module for name, module in e.model.named_modules() if name.endswith("model.layers"))
    kept: list[Tensor] = []
    third = list(blocks)[-(len(blocks) // 3) :]
    handles = [block.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0])) for block in third]
    handles.append(third[-1].register_forward_hook(lambda _, __, output: kept.append(output)))
    states, labels = [torch.empty(0)] * len(examples), [torch.empty(0)] * len(examples)
    for rows in evaluation_batches(examples, BATCH):
        kept.clear()
        batch = examples.batch(rows)
        token_losses(e.model, batch)
        all_BSKD = torch.stack(kept, 2).bfloat16()
        for place, row in enumerate(rows.tolist()):
            learned = batch["labels"][place, 1:] != IGNORED
            states[row], labels[row] = all_BSKD[place, :-1][learned].clone(), batch["labels"][place, 1:][learned]
    for handle in handles:
        handle.remove()
    return Taps(states, labels)


def side(rate: float, rounds: int) -> Points:
    """Train side experts."""
    clock = Clock()
    clock.start()
    e = experiment_of("last-third", rounds)
    train, test = taps_of(e, "train"), taps_of(e, "test")
    clock.stop()
    base: Any = e.model.get_base_model()
    torch.manual_seed(0)
    size, taps = train.states[0].shape[-1], train.states[0].shape[1] - 1
    experts = nn.ModuleList([SideExperts(size) for _ in range(taps)])
    adam = torch.optim.AdamW(experts.parameters(), lr=rate, weight_decay=0.0)

    def losses(own: Taps, rows: Sequence[int]) -> Tensor:
        states_NKD = torch.cat([own.states[row] for row in rows]).float()
        side_ND = torch.zeros_like(states_NKD[:, 0])
        for tap, module in enumerate(experts):
            side_ND = side_ND + module(states_NKD[:, tap], side_ND)
        with torch.autocast("cpu", torch.bfloat16):
            found = base.lm_head(base.model.norm(states_NKD[:, -1] + side_ND))
        return F.cross_entropy(found.float(), torch.cat([own.labels[row] for row in rows]), reduction="none")

    def held_out() -> float:
        with torch.inference_mode():
            parts = [losses(test, part.tolist()) for part in torch.arange(len(test.states)).split(4 * BATCH)]
        return math.exp(torch.cat(parts).double().mean())

    points: Points = []
    state = e.method.init(e.model)
    for number in range(1, rounds + 1):
        plan = plan_round(e.method, state, number, [0], e.budgets, e.training, e.recipe.seed)
        clock.start()
        for rows in local_batches(plan.clients[0], e.partition.indices[0], e.train):
            adam.zero_grad(set_to_none=True)
            losses(train, rows.tolist()).mean().backward()
            adam.step()
        clock.stop()
        points.append({"steps": number * STEPS, "seconds": clock.seconds, "perplexity": held_out()})
        print(f"side {rate:g}", points[-1], flush=True)
    return points


WAYS: dict[str, Callable[[], Points]] = {
    "last third": partial(adapted, ("last-third", 12)),
    "all": partial(adapted, ("all", 6)),
    "progressive: 4 of the last third, 4 of all": partial(adapted, ("last-third", 4), ("all", 4)),
    "progressive: 8 of the last third, 2 of all": partial(adapted, ("last-third", 8), ("all", 2)),
    **{f"side at rate {rate:g}": partial(side, rate, 24) for rate in SIDE_RATES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--results", type=Path, default=RESULTS / "depth_forms.json")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    resolve_model(MODEL)  # converts it once
    cache = default_cache_dir()
    assert cache is not None, "this user has a home folder"
    found: dict[str, Points] = json.loads(parsed.results.read_text())["ways"] if parsed.results.exists() else {}
    for name in parsed.ways:
        with TemporaryDirectory() as folder:  # a cache without states, but with the converted model
            (Path(folder) / "models").symlink_to(cache / "models")
            os.environ["FFTMOE_CACHE"] = folder
            found[name] = WAYS[name]()
        write_result(parsed.results, {"machine": machine(), "ways": found}, "ways")
    rows = [
        (way, str(point["steps"]), f"{point['seconds']:.0f}", f"{point['perplexity']:.2f}")
        for way, points in found.items()
        for point in points
    ]
    print(markdown(("way", "steps", "seconds", "perplexity"), rows))


if __name__ == "__main__":
    main()
