"""Run the command line of a checkout in separate processes, with that checkout's code."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import yaml

from tiny_inputs import SITES

SECONDS = 3600.0  # the most that any process may take
ROWS = 4  # of metrics.jsonl, after which a run is interrupted
TAIL = 3  # lines of a log in a message
BUDGETS: Mapping[str, str] = dict(zip(SITES, ("small", "large"), strict=True))  # the tier of each site


# Keys of recipes by their former names, which a checkout from before the renaming takes.
FORMER = {
    ("engine", "clients_per_batch"): "clients_at_once",
    ("federation", "ema_decay"): "average_decay",
    ("federation", "over_selection"): "spare_clients",
}

# Keys that turn off what an older checkout does not have.
LATER = (("data", "validation"),)


class RunFailed(Exception):
    """A run failed; the message says which run and why."""


@dataclass(frozen=True)
class Checkout:
    """A checkout of the code, and the folder of its runs.

    Attributes:
        source: its top folder.
        inputs: the folder that its processes run in, with models and data.
        work: the folder for its recipes, its runs and their logs.
        entry: what Python executes to start its command line.
        environment: of its processes.
    """

    source: Path
    inputs: Path
    work: Path
    entry: str
    environment: Mapping[str, str]

    @classmethod
    def prepare(cls, source: Path, inputs: Path, work: Path) -> "Checkout":
        """Find the command line of the checkout in `source`, an absolute path, and make sure that its code runs.

        Raises:
            SystemExit: `source` is no checkout, or Python imports the package from somewhere else.
        """
        try:
            project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
            module, function = project["scripts"]["fftmoe"].split(":")
        except (OSError, LookupError) as error:
            raise SystemExit(f"{source} is no checkout with a pyproject.toml that names the command fftmoe") from error
        environment = {
            **os.environ,
            "PYTHONPATH": str(source / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # nothing is written into the checkout
            "PYTHONHASHSEED": "0",  # peft writes a set of names into a LoRA adapter's configuration
            "FFTMOE_CACHE": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",  # the runs need no hub, and must not depend on one
        }
        work.mkdir(parents=True)
        command = [sys.executable, "-c", "import fftmoe; print(fftmoe.__file__)"]
        found = subprocess.run(command, env=environment, cwd=inputs, capture_output=True, text=True, check=True)
        if not Path(found.stdout.strip()).resolve().is_relative_to(source):
            raise SystemExit(f"Python imports fftmoe from {found.stdout.strip()}, which is not in {source}")
        # A process that a script starts in the background ignores Ctrl-C by default.
        listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        return cls(source, inputs, work, f"{listen}; from {module} import {function}; {function}()", environment)

    @contextmanager
    def started(self, log: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
        """The command line with these arguments, running; it is killed at the end if it still runs then."""
        command = [sys.executable, "-c", self.entry, *map(str, arguments)]
        with log.open("ab") as output:
            process = subprocess.Popen(command, env=self.environment, cwd=self.inputs, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def call(self, log: Path, *arguments: object) -> None:
        """Run the command line with these arguments to its end.

        Raises:
            RunFailed: it took too long, or its exit status is not 0.
        """
        with self.started(log, *arguments) as process:
            try:
                status = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                raise RunFailed(f"{log.stem} of {self.work.name} took longer than {SECONDS:g} s") from None
        if status:
            lines = log.read_text(errors="replace").splitlines()[-TAIL:]
            raise RunFailed(f"{log.stem} of {self.work.name} ended with status {status}: {' / '.join(lines)}")


def spelled_for(recipe: dict[str, Any], source: Path) -> dict[str, Any]:
    """The recipe with the keys that the checkout in this folder knows."""
    known = "".join(path.read_text() for path in sorted((source / "src" / "fftmoe" / "config").glob("*.py")))
    spelled = json.loads(json.dumps(recipe))
    for (section, name), former in FORMER.items():
        if f"{name}:" not in known and name in spelled[section]:
            spelled[section][former] = spelled[section].pop(name)
    for section, name in LATER:
        if f"{name}:" not in known:
            spelled[section].pop(name, None)
    return spelled


def paper_recipe(checkout: Checkout) -> Path:
    """The recipe `paper` of this checkout, in a file with the keys that the other one knows."""
    values = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "paper.yaml").read_text())
    file = checkout.work / "paper.yaml"
    file.write_text(yaml.safe_dump(spelled_for(values, checkout.source), sort_keys=False))
    return file


def run_recipe(checkout: Checkout, name: str, recipe: Path, *flags: str) -> Path:
    """Run a recipe from beginning to end; return the folder of the run."""
    folder = checkout.work / name
    checkout.call(checkout.work / f"{name}.log", "run", recipe, "--output", folder, *flags)
    return folder


def run_interrupted(checkout: Checkout, name: str, recipe: Path) -> Path:
    """Run a recipe, kill the process after a few rounds, and resume the run; return the folder of the run."""
    folder, log = checkout.work / name, checkout.work / f"{name}.log"
    with checkout.started(log, "run", recipe, "--output", folder) as process:
        ends = time.monotonic() + SECONDS
        while _num_rows(folder) < ROWS and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    if not _num_rows(folder) or (folder / "summary.json").exists():
        raise RunFailed(f"{name} of {checkout.work.name} could not be interrupted in its midst; see {log}")
    checkout.call(log, "resume", folder)
    return folder


def _num_rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def run_deployed(checkout: Checkout, name: str, recipe: Path, budgets: Mapping[str, str] = BUDGETS) -> Path:
    """Run a recipe over sites in separate processes, with TLS on the loopback; return the folder of the run.

    Args:
        budgets: the tier of each site; a site's data is in the inputs, in the folder `sites/<site>`.
    """
    folder, deployment = checkout.work / name, checkout.work / f"{name}-folders"
    with create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = checkout.work / f"{name}.log"
    checkout.call(log, "deploy", "init", deployment, "--sites", ",".join(budgets), "--address", address)
    has_policies = (checkout.source / "src" / "fftmoe" / "cli" / "deploy_site.py").exists()
    with ExitStack() as sites:
        for site, budget in budgets.items():
            place, data = deployment / "sites" / site, f"./sites/{site}"
            if has_policies:
                checkout.call(log, "deploy", "site", "review", recipe, "--site", place, "--yes")
            own_log = checkout.work / f"{name}-{site}.log"
            sites.enter_context(
                checkout.started(own_log, "deploy", "client", place, "--data", data, "--budget", budget)
            )
        server = (deployment / "server", "--recipe", recipe, "--output", folder, "--wait", "600")
        checkout.call(log, "deploy", "server", *server)
    return folder
