"""Runs commands in a process for which permissions hold, also where the tests run as root.

Root may read and write everything by two capabilities of the kernel. A process that gives them up before it starts is
refused like any other owner of a file: the errors in these tests are the kernel's own.
"""

import ctypes
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

PR_CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2


def outcomes(
    commands: Mapping[str, Sequence[str]], folders: Mapping[str, Path], caches: Mapping[str, Path]
) -> dict[str, dict[str, Any]]:
    """Status and standard error of each command of the command line, by its name, run one after another in a process.

    Args:
        folders: the current folder of a command; one that does not exist is made and removed under its feet.
        caches: the folder of a command's cache; without it, that of the tests.
    """
    usual = os.environ["FFTMOE_CACHE"]
    asked = json.dumps(
        [
            (name, list(words), str(folders.get(name, ".")), str(caches.get(name, usual)))
            for name, words in commands.items()
        ]
    )
    found = subprocess.run(
        [sys.executable, __file__], input=asked, text=True, capture_output=True, timeout=600, preexec_fn=_give_up
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def _give_up() -> None:
    if os.geteuid() == 0:
        for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
            if ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "cannot give up a capability")


def _outcome(words: Sequence[str], folder: Path, cache: str) -> dict[str, Any]:
    from fftmoe.cli.app import main

    os.environ["FFTMOE_CACHE"] = cache
    gone = not folder.exists()
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    if gone:
        folder.rmdir()
    out, err, status = io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(list(words))
    except SystemExit as stop:
        status = int(stop.code or 0)
    except Exception:
        return {"status": "traceback", "err": traceback.format_exc()}
    finally:
        os.chdir("/")
    return {"status": status, "err": err.getvalue()}


if __name__ == "__main__":
    print(json.dumps({name: _outcome(words, Path(at), cache) for name, words, at, cache in json.load(sys.stdin)}))
