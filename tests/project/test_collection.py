"""Every process that collects the tests finds the same ones, whatever its clock and its hash seed.

Otherwise the processes that share the tests of `make test` end before the first test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The names of all tests, as a process finds them whose clock is ahead by so many seconds.
COLLECT = """
import sys, time
import pytest

ahead, real = int(sys.argv[1]), time.time
time.time = lambda: real() + ahead
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]))
"""


def collected(ahead: int, seed: int) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", COLLECT, str(ahead)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_another_clock_and_another_hash_seed_find_the_same_tests():
    first = collected(0, 1)
    assert len(first) > 1000
    assert collected(86_407, 2) == first
