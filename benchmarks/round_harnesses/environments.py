"""Where the other frameworks live: a virtual environment for each, made once and kept between runs.

They cannot share ours: Flower pins a dozen libraries to one minor version, pfl pins attrs and absl below what others of
ours use.
"""

import hashlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

# The versions that are compared. Flower 1.42 asks for a certifi that is newer than any that can be had yet.
HARNESSES = {
    "flower": ("flwr[simulation]==1.41.0",),
    "pfl": ("pfl[pytorch]==0.6.0",),
}
# What the model is made of has our versions (constraints.txt) everywhere; the rest is what a framework asks for.
# pfl says nothing of numpy, and runs with our 2.4.
SAME_AS_OURS = ("torch", "transformers", "peft", "aenum", "safetensors", "numpy", "tokenizers")
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class NoEnvironment(Exception):
    """An environment could not be made; the message is the last that pip said."""


def python_of(harness: str, folder: Path) -> Path:
    """The interpreter of this harness, in `folder`, installed if need be; ours for one without a framework.

    Raises:
        NoEnvironment: venv or pip failed.
    """
    if harness not in HARNESSES:
        return Path(sys.executable)
    home = folder.resolve() / harness
    python, stamp = home / "bin" / "python", home / "installed"
    wanted, pins = [*HARNESSES[harness], *_our_dependencies()], _pins()
    key = hashlib.sha256("\n".join([*wanted, *pins.values(), sys.version]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key:
        return python
    print(f"installing {', '.join(HARNESSES[harness])} into {home}", flush=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-m", "venv", "--clear", str(home)])
    (home / "constraints.txt").write_text("\n".join(pins.values()) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(home / "constraints.txt")]
    # First and alone, by its exact version: a looser request would find a CUDA build and gigabytes of libraries for it.
    _call([*pip, pins["torch"]])
    _call([*pip, *wanted])
    stamp.write_text(key)
    return python


def environment(work: Path) -> dict[str, str]:
    """The variables of a harness's process: this tree's code, one thread, nothing sent or fetched."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    return {
        **os.environ,
        **QUIET,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "FFTMOE_CACHE": str(work.absolute() / "cache"),
        "FLWR_HOME": str(work.absolute() / "flwr"),
    }


def _our_dependencies() -> list[str]:
    """What `import fftmoe` needs, as pyproject.toml says; the package itself is read from this tree."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def _pins() -> dict[str, str]:
    """Our exact requirements, by library."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    ours = {line.partition("==")[0]: line for line in lines if "==" in line}
    return {name: ours[name] for name in SAME_AS_OURS}


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "no reason given")
        raise NoEnvironment(f"{' '.join(command[:4])} …: {reason}")
