"""Run all tests and measurements that need one CUDA GPU: `python benchmarks/gpu.py`.

First the tests marked `gpu` run, then the comparisons that other files make on a CPU run on the GPU. Each writes its
JSON next to the one for the CPU, with the device's name. If one fails, the command ends with its exit status.
"""

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ("-m", "pytest", "-m", "gpu", "tests"),
    ("benchmarks/crossover.py", "--device", "cuda"),
    ("benchmarks/adapter_step.py", "--device", "cuda"),
    ("benchmarks/at_once.py", "--device", "cuda"),
)


def main() -> int:
    if not torch.cuda.is_available():
        print("torch finds no CUDA GPU here", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name())
    for command in COMMANDS:
        print(f"\n$ python {' '.join(command)}", flush=True)
        status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
