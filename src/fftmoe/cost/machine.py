"""Measures what this machine has: memory, by the kernel and the control groups of the process,
and the speed of one core.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from fftmoe.engines.memory import peak_rss_mib
from fftmoe.methods.budget import MIB

MATRIX_SIDE = 512
SPEED_SECONDS = 0.2  # for which matrices are multiplied


def total_mib() -> float:
    """Return the memory of the machine in MiB, or what the control groups allow where that is less."""
    return min(_memory("MemTotal", "SC_PHYS_PAGES"), *(limit for limit, _ in control_groups()))


def available_mib() -> float:
    """Return the memory in MiB that a new process could have without swapping, within every control group."""
    left = (limit - used for limit, used in control_groups())
    return max(0.0, min(_memory("MemAvailable", "SC_AVPHYS_PAGES"), *left))


def expected_peak_mib(cached_bytes: Iterable[int], processes: int) -> float:
    """Return the memory in MiB that the processes of a run are expected to hold at their peak.

    Each is expected to take what this process has taken so far, in which a few steps must have been trained, and the
    files of cached states, which count as resident once they are read.

    Args:
        cached_bytes: the sizes of those files.
    """
    return (peak_rss_mib() + sum(cached_bytes) / MIB) * processes


def memory_warning(expected_mib: float, held_mib: float, free_mib: float) -> str | None:
    """Return what to say where the processes of a run are expected to take more memory than there is; None where they
    fit.

    Args:
        expected_mib: of all processes at their peak. held_mib: of it, what this process has already.
        free_mib: for anything more.
    """
    if expected_mib - held_mib <= free_mib:
        return None
    return (
        f"warning: the run is expected to take {expected_mib / 2**10:.1f} GiB of memory, and "
        f"{(held_mib + free_mib) / 2**10:.1f} GiB are free for it; lower engine.workers or federation.batch_size, set "
        "engine.micro_batch_size (examples at a time) or engine.checkpointing=true, or adapt fewer blocks "
        "(adapter.blocks)"
    )


def gflops_per_second() -> float:
    """Return the speed of float32 matrix products on one thread, in 10^9 operations a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(MATRIX_SIDE, MATRIX_SIDE)
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < SPEED_SECONDS:
            torch.mm(a, a)
            done += 1
        return done * 2 * MATRIX_SIDE**3 / (time.perf_counter() - started) / 1e9
    finally:
        torch.set_num_threads(threads)


def _memory(name: str, pages: str) -> float:
    """Return a line of Linux's /proc/meminfo in MiB; on other systems a value of the system configuration."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return float(lines[name].split()[0]) / 2**10
    except (OSError, KeyError, ValueError):
        known = pages if pages in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(known) * os.sysconf("SC_PAGE_SIZE") / MIB


def control_groups(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> list[tuple[float, float]]:
    """Return (limit, use) in MiB of each readable control group of this process, and one entry without a limit."""
    groups = [(float("inf"), 0.0)]
    try:
        lines = [line.split(":", 2) for line in process.read_text().splitlines()]
    except (OSError, ValueError):
        return groups
    for _, controllers, path in lines:
        if controllers == "":  # version 2
            groups += _with_ancestors(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            groups += _with_ancestors(root / "memory", path, *files)
    return groups


def _with_ancestors(root: Path, path: str, limit: str, used: str, cache: str) -> list[tuple[float, float]]:
    """Return a group and all above it. In a container, `path` is the host's path and `root` is the
    container's group.
    """
    inner = root / path.lstrip("/")
    folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return [group for folder in folders if (group := _read_group(folder, limit, used, cache)) is not None]


def _read_group(folder: Path, limit: str, used: str, cache: str) -> tuple[float, float] | None:
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        allowed = float((folder / limit).read_text())  # version 2 writes "max" where there is no limit
        taken = float((folder / used).read_text()) - float(stat.get(cache, 0))  # less what files can give back
    except (OSError, ValueError):
        return None
    return allowed / MIB, max(0.0, taken) / MIB
