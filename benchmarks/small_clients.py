"""Time clients with small batches: one after another, in one batch, and in worker processes.

Processor time covers this process only. The gain of several processes shows only in wall-clock time, which other work
on the machine disturbs. So both times are taken in the same rounds.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fftmoe.backbones import fingerprint
from fftmoe.engines.base import Engine
from fftmoe.engines.local import WorkerPool
from fftmoe.records import ClientUpdate, RoundPlan
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.expectation import Expectation
from fftmoe.setup.clients import ClientSpec, build_client
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.store import ClientStateFiles
from timing import Seconds, interleave
from trick_bench import Bench
from tricks import Tricks

NAIVE, SHORT, FULL, AT_ONCE = "naive", "naive, padded to the longest of these texts", "full stack", "+ clients at once"
WORKERS = 2
IN_WORKERS = f"+ {WORKERS} worker processes"
AS_PLANNED = f"{WORKERS} worker processes, groups as the product chooses"


def measure(bench: Bench, full: Tricks, longest: int, rounds: int) -> dict[str, Any]:
    """Measure the processor seconds and the wall-clock seconds of every variant.

    Args:
        bench: its texts have at most `longest` tokens.
        full: what the product does.
    """
    clients = len(bench.plans)
    chosen = clients_per_batch(bench.experiment)
    with ExitStack() as stack:
        pool = WorkerPool(WORKERS, partial(build_client, spec(bench, full)))
        stack.callback(pool.close)
        short = Bench(**{**vars(bench), "longest": longest})
        variants: dict[str, Callable[[], object]] = {
            NAIVE: partial(bench.one_after_another, Tricks()),
            SHORT: partial(short.one_after_another, Tricks()),
            FULL: partial(bench.product, full),
            AT_ONCE: partial(bench.at_once, full),
            # As many groups as workers, so that none waits.
            IN_WORKERS: partial(exchange, bench, pool, -(-clients // WORKERS)),
            AS_PLANNED: partial(exchange, bench, pool, chosen),
        }
        walls: Seconds = {name: [] for name in variants}
        processor = interleave(
            {name: partial(_on_the_wall, call, walls[name]) for name, call in variants.items()},
            rounds,
            torch.device("cpu"),
        )
    for name in (IN_WORKERS, AS_PLANNED):
        del processor[name]  # this process only waits
    counted = {name: seconds[-rounds:] for name, seconds in walls.items()}
    lengths = bench.texts.lengths
    return {
        "clients": clients,
        "examples": [len(rows) for rows in bench.rows],
        "mean_length": float(lengths.double().mean()),
        "together_as_the_product_chooses": chosen,
        "processor": processor,
        "wall": counted,
    }


def _on_the_wall(call: Callable[[], object], seconds: list[float]) -> None:
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)


def spec(bench: Bench, tricks: Tricks) -> ClientSpec:
    """Return the values from which a worker process is built, with the same examples and cached states."""
    recipe = bench.experiment.recipe
    engine = recipe.engine.model_copy(update={"precision": "bfloat16" if tricks.bfloat16 else "float32"})
    examples = bench.use(tricks)
    return ClientSpec(
        recipe.model_copy(update={"engine": engine}),
        bench.experiment.label_names,
        bench.experiment.method,
        examples,
        bench.rows,
        ClientStateFiles(Path(bench.cache_dir) / "clients", durable=False),
        examples,
    )


def exchange(bench: Bench, engine: Engine, at_once: int) -> list[ClientUpdate]:
    """Run a round with real messages; client states are discarded, so that every round is the same."""
    shutil.rmtree(Path(bench.cache_dir) / "clients", ignore_errors=True)
    sent = {plan.client_id: tensors for plan, tensors in zip(bench.plans, bench.sent, strict=True)}
    plan = RoundPlan(1, tuple(bench.plans))
    backbone = fingerprint(bench.experiment.model)
    expect = partial(Expectation.of, method=bench.experiment.method, backbone=backbone)
    exchange = Exchange(engine, expect, Ledger(), clients_per_batch=at_once)
    return list(exchange.updates(plan, lambda client: sent[client.client_id]))


def table(results: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the speed-up over the naive stack; each row uses the appropriate clock."""
    header = ("clients", "way", "ms (wall)", "faster by (processor time)", "faster by (wall)", "at most, with workers")
    rows = []
    for result in results:
        processor, wall = result["processor"], result["wall"]
        for name, seconds in wall.items():
            by_processor = _faster(processor, name)
            # Workers that share nothing and wait for nobody would each do their part of this.
            bound = None if name != AT_ONCE or by_processor is None else WORKERS * by_processor
            rows.append(
                (
                    str(result["clients"]),
                    name,
                    f"{1e3 * statistics.median(seconds):.0f}",
                    _times(by_processor),
                    _times(_faster(wall, name)),
                    _times(bound),
                )
            )
    return header, rows


def best(result: dict[str, Any]) -> tuple[float, float]:
    """With clients in one batch and workers: the wall-clock speed-up, and the most that processor time allows."""
    bound = _faster(result["processor"], AT_ONCE)
    measured = _faster(result["wall"], IN_WORKERS)
    assert bound is not None
    assert measured is not None
    return measured, WORKERS * bound


def _faster(seconds: Seconds, name: str) -> float | None:
    return statistics.median(seconds[NAIVE]) / statistics.median(seconds[name]) if name in seconds else None


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
