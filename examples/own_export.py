"""Add your own export format: the adapter in bfloat16, which takes half the bytes.

    python examples/own_export.py [recipe] [section.key=value ...]

A format writes into a new folder and returns what `export.json` says about it. Plug-ins cannot add one, so this script
adds a row to the table `FORMATS` of `fftmoe/setup/export.py`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

import fftmoe
from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.exports.check import answers, difference, probes, require
from fftmoe.exports.load import reload
from fftmoe.setup.export import FORMATS
from fftmoe.setup.finished import load_run


def export_half(run: Path, folder: Path) -> dict[str, float]:
    """Round the weights, open the result, and compare its logits with those of the run."""
    batches = probes(trained := load_run(run, exact=True))
    shutil.copytree(run / "adapter", folder, ignore=shutil.ignore_patterns("bound.json"), dirs_exist_ok=True)
    save_file({name: t.bfloat16() for name, t in load_file(folder / ADAPTER_WEIGHTS).items()}, folder / ADAPTER_WEIGHTS)
    found = difference(answers(reload(trained.run, folder), batches), answers(trained.model, batches))
    return require(found, 0.05, "adapter in bfloat16")


FORMATS["half"] = (export_half, set())  # no options
if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as place:
        run = fftmoe.run(recipe, f"{place}/run", overrides).folder
        about = fftmoe.export(run, "half", f"{place}/half")
        before = (run / "adapter" / ADAPTER_WEIGHTS).stat().st_size
    print(f"from {before} bytes to {about['bytes']}; difference of logits {about['max_difference']:.2g}")
