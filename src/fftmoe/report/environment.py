"""What a run was computed on: the versions and the machine, for whoever reproduces it."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("fftmoe", "torch", "transformers", "peft", "safetensors", "numpy")


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions of what computes, Python, the platform, the processor with its cores, and the GPU if one was used."""
    found: dict[str, str | int] = {name: _version(name) for name in PACKAGES}
    found |= {"python": platform.python_version(), "implementation": sys.implementation.name}
    found |= {"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count() or 1}
    return {**found, "gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def _processor() -> str:
    """Its name; Linux does not tell it through `platform`."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
