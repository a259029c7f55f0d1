"""Run the tests that depend on arithmetic as other processors compute them.

    make test-processors                                            # all settings, one after another
    make test-processors SETTINGS="oldest/1 onednn-avx2/1"          # some of them
    make test-processors SETTINGS="oldest/1 --only tests/adapter tests/client"

A setting is a name and a number of threads. The names tell PyTorch, oneDNN and the BLAS libraries to use the
instructions of an older processor (`oldest`: all of them at once), or simulate the rounding of another one
(`tests/rounding.py`). A setting that this processor lacks is printed as such. With all settings, the outcome is written
to `benchmarks/results/processors.json`. Exit status 1 if a test fails.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common import RESULTS, machine, write_result

CHOICE = "arithmetic and not slow and not gpu and not network"
WORKERS = 2


class Setting(NamedTuple):
    """Environment of the tests, further arguments for pytest, and the least that PyTorch must report as capability."""

    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    capability: str | None = None


SETTINGS = {
    "aten-default": Setting({"ATEN_CPU_CAPABILITY": "default"}, capability="DEFAULT"),
    "aten-avx2": Setting({"ATEN_CPU_CAPABILITY": "avx2"}, capability="AVX2"),
    "aten-avx512": Setting({"ATEN_CPU_CAPABILITY": "avx512"}, capability="AVX512"),
    "onednn-sse41": Setting({"ONEDNN_MAX_CPU_ISA": "SSE41"}),
    "onednn-avx2": Setting({"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "blas-oldest": Setting({"MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": "Prescott"}),
    "oldest": Setting(
        {
            "ATEN_CPU_CAPABILITY": "default",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_CBWR": "COMPATIBLE",
            "OPENBLAS_CORETYPE": "Prescott",
        },
        capability="DEFAULT",
    ),
    "rounding-1": Setting({}, ("--rounding", "1")),
    "rounding-2": Setting({}, ("--rounding", "2")),
}
# What is simulated does not depend on threads.
ALL = tuple(f"{name}/{n}" for name, setting in SETTINGS.items() for n in ((1, 2) if setting.environment else (1,)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the settings, print one line for each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="NAME/THREADS", help="by default all of: " + " ".join(ALL))
    parser.add_argument("--only", nargs="+", metavar="PATH", default=[], help="only the tests below these paths")
    given = parser.parse_args(arguments)
    chosen = given.settings
    if unknown := [name for name in chosen if name not in ALL]:
        parser.error(f"unknown setting {unknown[0]!r}; choose among {' '.join(ALL)}")
    rows = []
    for name in chosen or ALL:
        rows.append(row := outcome(name, given.only))
        print(f"{name:<16} {describe(row)}", flush=True)
    if not chosen and not given.only:
        write_result(RESULTS / "processors.json", {"machine": machine(), "settings": rows}, "settings")
    return int(any(row.get("failed") for row in rows))


def outcome(name: str, paths: Sequence[str] = ()) -> dict[str, Any]:
    """Run the tests, or those below these paths, under one setting.

    Returns:
        how many tests passed, failed and were skipped, which failed, and the seconds; or what the processor lacks.
    """
    kind, threads = name.split("/")
    setting = SETTINGS[kind]
    environment = {**os.environ, **setting.environment, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if setting.capability and (found := capability(environment)) != setting.capability:
        return {"setting": name, "lacks": f"{setting.capability} (PyTorch reports {found})"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(WORKERS), "-m", CHOICE, "-p", "no:cacheprovider"]
    begin = time.monotonic()
    run = subprocess.run(
        [*command, *setting.arguments, *paths], env=environment, capture_output=True, text=True, check=False
    )
    row = {"setting": name, "seconds": round(time.monotonic() - begin), **counts(run.stdout)}
    if run.returncode > 1 or not row["passed"]:
        raise SystemExit(f"pytest could not run under {name} (status {run.returncode}):\n{run.stdout}\n{run.stderr}")
    return row


def capability(environment: dict[str, str]) -> str:
    """Ask PyTorch which instructions it uses in this environment."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    asked = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def counts(output: str) -> dict[str, Any]:
    """Read pytest's last line and its lines of failures."""
    last = (output.rstrip().splitlines() or [""])[-1]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    names = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    failed = found.get("failed", 0) + found.get("error", 0)
    return {"passed": found.get("passed", 0), "failed": failed, "skipped": found.get("skipped", 0), "failures": names}


def describe(row: dict[str, Any]) -> str:
    """Return the line that is printed for a row."""
    if "lacks" in row:
        return f"not run: this processor has no {row['lacks']}"
    line = f"{row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped in {row['seconds']} s"
    return "\n  ".join([line, *row["failures"]])


if __name__ == "__main__":
    sys.exit(main())
