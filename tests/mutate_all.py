"""Change every check of the modules of `guarded.py: CHANGED`, one at a time, and list what no test sees.

    python tests/mutate_all.py [--modules fftmoe.deploy.door,...] [--output benchmarks/results/mutants.json]

A module's own tests run for each change until one fails (`guards.py`); tests marked slow or network do not run.
A change that survives is listed with its reason from `survivors.json`; one without a reason ends this with 1.
All modules take hours on a busy core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guarded import CHANGED
from mutants import KINDS, find_mutants

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
REASONS = ROOT / "tests" / "survivors.json"


def main() -> int:
    """Return 0 if each change that survives has a reason."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--modules", default=",".join(CHANGED))
    arguments.add_argument("--kinds", default=",".join(KINDS))
    arguments.add_argument("--output", type=Path, default=RESULT)
    given = arguments.parse_args()
    modules, kinds = given.modules.split(","), tuple(given.kinds.split(","))
    names = {module: list(names_of(module, kinds)) for module in modules}
    left = {module: set(found) for module, found in names.items()}
    for file in dict.fromkeys(file for module in modules for file in CHANGED[module]):
        asked = [module for module in modules if file in CHANGED[module] and left[module]]
        if asked:
            ask(file, asked, left, kinds)
            print(f"{file}: {', '.join(f'{module} {len(left[module])} left' for module in asked)}", flush=True)
        write(given.output, names, left, kinds)
    return 0 if all(known(name) for module in modules for name in left[module]) else 1


def names_of(module: str, kinds: tuple[str, ...]) -> Iterator[str]:
    source = ROOT / "src" / Path(*module.split(".")).with_suffix(".py")
    return (f"{module}: {mutant.name}" for mutant in find_mutants(source.read_text(), kinds))


def ask(file: str, modules: Sequence[str], left: dict[str, set[str]], kinds: tuple[str, ...]) -> None:
    """Take out of `left` what the tests of this file see."""
    with tempfile.TemporaryDirectory() as folder:
        only = Path(folder) / "only.json"
        only.write_text(json.dumps(sorted(name for module in modules for name in left[module])))
        command = [sys.executable, "tests/guards.py", ",".join(modules), f"tests/{file}", "--kinds", ",".join(kinds)]
        command += ["--only", str(only), "-m", "not slow and not network and not gpu"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"status": done.stderr}
    if outcome["status"] or outcome["red without a change"]:
        print(f"{file} cannot be asked: {outcome}", flush=True)
        return
    for module in modules:
        left[module] &= set(outcome["survivors"])


def known(name: str) -> str:
    """The reason for which a change may survive; empty if there is none."""
    return json.loads(REASONS.read_text()).get(name, "")


def write(output: Path, names: dict[str, list[str]], left: dict[str, set[str]], kinds: tuple[str, ...]) -> None:
    """Write the outcome so far, next to that of modules that were not asked now."""
    found: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {}
    for module, all_names in names.items():
        survivors = {name: known(name) for name in sorted(left[module])}
        caught = sum(name not in left[module] for name in all_names)
        found[module] = {"kinds": kinds, "changes": len(all_names), "caught": caught, "survivors": survivors}
    output.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
