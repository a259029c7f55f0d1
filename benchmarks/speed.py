"""Run all measurements of speed and scale on this machine: `python benchmarks/speed.py [names]`.

This takes about an hour and a half on two quiet cores. Each measurement takes its variants in turn and writes its own
JSON. If one fails, the others still run, and the end of the output names it.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "crossover",
    "adapter_step",
    "end_to_end",
    "at_once",
    "round_overhead",
    "worker_memory",
    "population",
    "growth",
    "bytes",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all succeeded, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(NAMES)}; default: all")
    names = parser.parse_args(arguments).names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no measurement is called {', '.join(unknown)}; choose among {', '.join(NAMES)}")
    failed = []
    for name in names:
        print(f"\n# {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
