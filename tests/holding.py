"""Other processes that hold a folder, as a second call of a command would."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(program: str, folder: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs this program, which prints `held` as soon as it holds the folder, its first argument.

    It is killed at the end, so that a test that fails need not wait for it.
    """
    command = [sys.executable, "-c", program, str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
