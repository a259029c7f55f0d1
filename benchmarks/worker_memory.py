"""Measure the private memory of a forked and of a spawned worker process: `python benchmarks/worker_memory.py`.

Both use the quickstart's backbone. The script needs Linux, because only Linux reports which pages are shared.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import RESULTS, machine, markdown, write_result

WORKERS = 3


def private_kib() -> int:
    """Return the private memory of this process in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def use_backbone() -> None:
    """Do the least that a worker does: load the backbone and read all its weights."""
    import fftmoe.setup.compose  # noqa: F401  a worker's own imports
    from fftmoe.backbones import load_backbone

    for parameter in load_backbone("builtin:minilm", num_labels=3).parameters():
        parameter.sum()


def measure(method: str) -> Sequence[int]:
    """Return the private KiB of each worker started by `method`."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # as `fftmoe.engines.local` starts its own
        context.set_forkserver_preload(["fftmoe.setup.compose"])
    found = []
    for _ in range(WORKERS):
        with ProcessPoolExecutor(1, mp_context=context, initializer=use_backbone) as pool:
            found.append(pool.submit(private_kib).result())
    return found


def main() -> None:
    kib = {method: measure(method) for method in ("spawn", "forkserver")}
    write_result(RESULTS / "worker_memory.json", {"machine": machine(), "kib": kib}, "kib")
    rows = [(method, *(f"{value / 1024:.0f}" for value in values)) for method, values in kib.items()]
    print(markdown(("started by", *(f"worker {n + 1}, MiB" for n in range(WORKERS))), rows))


if __name__ == "__main__":
    main()
