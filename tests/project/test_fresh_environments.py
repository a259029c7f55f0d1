"""What is declared is enough: the lowest versions for a run, and the extra `flower`, without Ray, for sites.

Each environment is new and takes minutes to fill. torch is the version that is installed here, because an older one is
a download of gigabytes.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from shared_fixtures import COLOURS
from sites import NAMES, divide, natural, over_sites

pytestmark = [pytest.mark.slow, pytest.mark.network]
ROOT = Path(__file__).parents[2]
SECONDS = 1800
TORCH = f"torch=={importlib.metadata.version('torch').split('+')[0]}"


class Environment:
    """A new virtual environment in a folder, in which nothing is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._own |= {"HF_HUB_OFFLINE": "1", "FFTMOE_CACHE": str(folder / "cache")}
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)

    def command(self, *command: object) -> list[str]:
        program, *rest = map(str, command)
        return [str(self.folder / "env" / "bin" / program), *rest]

    def call(self, *command: object, status: int = 0) -> str:
        done = subprocess.run(
            self.command(*command), cwd=self.folder, env=self._own, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stderr if status else done.stdout

    @contextmanager
    def started(self, *command: object) -> Iterator[None]:
        process = subprocess.Popen(
            self.command(*command), cwd=self.folder, env=self._own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def install(self, *requirements: object, constraints: Path) -> None:
        pip = ("python", "-m", "pip", "install", "--quiet", "--constraint", constraints)
        self.call(*pip, TORCH)
        self.call(*pip, *requirements)

    def names(self) -> set[str]:
        listed: list[dict[str, str]] = json.loads(self.call("python", "-m", "pip", "list", "--format", "json"))
        return {package["name"] for package in listed}


def lowest_versions(*extras: str) -> list[str]:
    """A constraint for each declared dependency but torch: the lowest version that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional: Sequence[str] = [line for extra in extras for line in project["optional-dependencies"][extra]]
    found = [Requirement(line) for line in (*project["dependencies"], *optional)]
    floors = {one.name: [part.version for part in one.specifier if part.operator in (">=", "==")] for one in found}
    return [f"{name}=={floor}" for name, (floor,) in floors.items() if name != "torch"]


def test_the_lowest_declared_versions_are_enough(recipe_file: Path, data_folder: Path, tmp_path: Path):
    environment = Environment(tmp_path)
    (tmp_path / "lowest.txt").write_text("\n".join(lowest_versions()) + "\n")
    environment.install(ROOT, constraints=tmp_path / "lowest.txt")
    environment.call("python", "-m", "pip", "check")
    environment.call("fftmoe", "run", recipe_file, "--output", "run")
    environment.call("fftmoe", "evaluate", "run")
    answers = environment.call("fftmoe", "predict", "run", "ash bay blue", "cod dew red")
    assert len([json.loads(line)["label"] for line in answers.splitlines()]) == 2
    environment.call("fftmoe", "export", "run", "--to", "peft", "--output", "exported")


def test_sites_need_no_ray(recipe_values: dict[str, Any], data_folder: Path, tmp_path: Path):
    environment = Environment(tmp_path)
    environment.install(f"{ROOT}[flower]", constraints=ROOT / "constraints.txt")
    assert "flwr" in environment.names()
    assert "ray" not in environment.names()
    divide(data_folder, tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    values = over_sites(natural(recipe_values, rounds=2), tmp_path / "data")
    recipe.write_text(yaml.safe_dump({**values, "data": {**values["data"], "labels": list(COLOURS)}}))
    refused = environment.call("fftmoe", "run", recipe, "--engine", "flower", "--output", "simulated", status=2)
    assert "needs ray: pip install 'fftmoe[simulation]'" in refused
    with create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment.call("fftmoe", "deploy", "init", "d", "--sites", ",".join(NAMES), "--address", address)
    with ExitStack() as stack:
        for name in NAMES:
            site = tmp_path / "d" / "sites" / name
            environment.call("fftmoe", "deploy", "site", "review", recipe, "--site", site, "--yes")
            arguments = (site, "--data", tmp_path / "data" / name, "--budget", "small")
            stack.enter_context(environment.started("fftmoe", "deploy", "client", *arguments))
        environment.call("fftmoe", "deploy", "server", "d/server", "--recipe", recipe, "--output", "run")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3  # the start and two rounds
    assert (tmp_path / "run" / "summary.json").is_file()
