"""Says what a run was computed on: package versions and the machine, for people who reproduce the run."""

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RECORDED_PACKAGES = ("fftmoe", "torch", "transformers", "peft", "safetensors", "numpy")


def environment(device: torch.device) -> dict[str, str | int]:
    """Return the versions of the packages that compute and of Python, the platform, the processor, its cores,
    and any GPU.
    """
    found: dict[str, str | int] = {name: installed_version(name) or "unknown" for name in RECORDED_PACKAGES}
    found |= {"python": platform.python_version(), "implementation": sys.implementation.name}
    found |= {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count() or 1}
    return {**found, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else found


@cache
def installed_version(package: str) -> str | None:
    """Return a package's version, None if it is not installed, as where this one runs from a source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name; on Linux `platform` does not know it."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
