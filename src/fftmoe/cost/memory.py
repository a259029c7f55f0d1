"""How much memory this machine has and has left, as the kernel and the process's control groups say."""

import os
from pathlib import Path

MIB = 2**20


def total_mib() -> float:
    """Of the machine, or what the control groups allow where that is less."""
    return min(_machine("MemTotal", "SC_PHYS_PAGES"), *(limit for limit, _ in _groups()))


def available_mib() -> float:
    """What a new process could have without swapping, within every control group."""
    left = (limit - used for limit, used in _groups())
    return max(0.0, min(_machine("MemAvailable", "SC_AVPHYS_PAGES"), *left))


def _machine(name: str, pages: str) -> float:
    """A line of Linux's /proc/meminfo; elsewhere what the system configuration says."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return float(lines[name].split()[0]) / 2**10
    except (OSError, KeyError, ValueError):
        known = pages if pages in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(known) * os.sysconf("SC_PAGE_SIZE") / MIB


def _groups(
    root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")
) -> list[tuple[float, float]]:
    """Limit and use in MiB of each control group that this process is in and that can be read; one without limit."""
    found = [(float("inf"), 0.0)]
    try:
        lines = [line.split(":", 2) for line in process.read_text().splitlines()]
    except (OSError, ValueError):
        return found
    for _, controllers, path in lines:
        if controllers == "":
            found += _above(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _above(root / "memory", path, *names)
    return found


def _above(root: Path, path: str, limit: str, used: str, cache: str) -> list[tuple[float, float]]:
    """A group and all above it. Inside a container `path` is the host's, and the root is the container's own."""
    inner = root / path.lstrip("/")
    folders = [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return [group for folder in folders if (group := _group(folder, limit, used, cache)) is not None]


def _group(folder: Path, limit: str, used: str, cache: str) -> tuple[float, float] | None:
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        most = float((folder / limit).read_text())  # v2 writes "max" where there is none
        taken = float((folder / used).read_text()) - float(stat.get(cache, 0))  # what files can give back at once
    except (OSError, ValueError):
        return None
    return most / MIB, max(0.0, taken) / MIB
