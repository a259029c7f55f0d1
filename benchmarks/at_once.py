"""Time the training of several clients in one batch: `python benchmarks/at_once.py [--device cuda]`.

Each row uses the quickstart's model on texts of one length. The clients' updates are computed one after another and in
one batch, in turn, several times. The figure is the ratio of the medians of the processor time, with its range over
blocks of repetitions. The constants of `fftmoe.setup.stacking` come from this table.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.backbones import first_adapted_block
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.client.stack import update_stack
from fftmoe.client.update import update_client
from fftmoe.config import load_recipe
from fftmoe.data import Examples, TokenizedText, default_cache_dir
from fftmoe.head import make_head
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from timing import device_name, interleave, ratio, use_device

# Clients, examples in a batch, tokens of a text.
SHAPES = ((8, 16, 64), (8, 8, 64), (8, 8, 32), (8, 4, 32), (8, 2, 32), (8, 4, 16), (8, 1, 16), (32, 2, 16), (32, 1, 16))
ADAPTED = {"last 2 blocks, cached": ("last-2", "auto"), "all blocks": ("all", "off")}
STEPS = 3
BLOCKS = 3  # of repetitions


def texts(num: int, length: int, num_labels: int) -> TokenizedText:
    """Return random token ids; all texts have the same length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (num * length,), generator=generator, dtype=torch.int32)
    return TokenizedText(ids, torch.arange(num + 1) * length, torch.arange(num) % num_labels)


def both_ways(
    blocks: str, cache: str, clients: int, batch: int, length: int, device: str
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two functions for one round: clients one after another, and in one batch."""
    budget = "budgets=[{name: all, fraction: 1, top_k: 2, experts: 8}]"
    settings = (
        TRAINED_HEAD,
        f"adapter.blocks={blocks}",
        "trackers=[]",
        budget,
        f"engine.device={device}",
        "engine.precision=auto",
    )
    experiment = compose(load_recipe("paper", settings if device == "cuda" else settings[:-1]))
    method, model = experiment.method, experiment.model
    training = replace(experiment.training, batch_size=batch, local_steps=STEPS)
    examples: Examples = texts(clients * batch * STEPS, length, len(experiment.label_names))
    if cache == "auto":
        examples = with_prefix(model, first_adapted_block(model), examples, default_cache_dir(), 2**32)
    state = method.init(model)
    cohort = range(clients)
    budgets = dict.fromkeys(cohort, experiment.tiers[0])
    plans = plan_round(replace(method, budgets=budgets), state, 1, cohort, budgets, training, 0).clients  # type: ignore
    sent, kept = [method.download(state, plan) for plan in plans], [{} for _ in plans]
    rows, head = np.split(np.arange(len(examples)), clients), make_head("averaged")

    def one_after_another() -> list[Any]:
        each = zip(plans, sent, kept, rows, strict=True)
        return [update_client(model, method, head, p, t, s, examples, r) for p, t, s, r in each]

    def at_once() -> list[Any]:
        return update_stack(model, method, head, plans, sent, kept, examples, rows)  # type: ignore[arg-type]

    return one_after_another, at_once


def measure(repetitions: int, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for name, (blocks, cache) in ADAPTED.items():
        for clients, batch, length in SHAPES:
            one, several = both_ways(blocks, cache, clients, batch, length, device.type)
            taken = interleave({"one": one, "all": several}, repetitions, device)
            faster = ratio(taken["one"], taken["all"], BLOCKS)
            shape = {"adapted": name, "clients": clients, "batch": batch, "length": length}
            rows.append({**shape, "faster": faster, "seconds": taken})
            print(f"{name}: {clients} x {batch} x {length}: {faster[0]:.2f}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    header = ("adapters in", "clients", "batch", "length", "tokens of a client's batch", "at once is faster by")
    body = [
        (
            row["adapted"],
            *(str(row[key]) for key in ("clients", "batch", "length")),
            str(row["batch"] * row["length"]),
            "{:.2f} ({:.2f} to {:.2f})".format(*row["faster"]),
        )
        for row in rows
    ]
    return markdown(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = use_device(arguments.device)
    rows = measure(arguments.repetitions, device)
    found = {"machine": machine(), "device": device_name(device), "rows": rows}
    name = "at_once.json" if device.type == "cpu" else f"at_once-{device.type}.json"
    write_result(RESULTS / name, found, "rows")
    print(table(rows))


if __name__ == "__main__":
    main()
