"""One process for each folder of a deployment and for each output: a second one is refused before it does anything."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import Recipe, parse_recipe
from fftmoe.deploy import client as client_module
from fftmoe.deploy import server as server_module
from fftmoe.deploy.client import run_client
from fftmoe.deploy.federation import prepare
from fftmoe.deploy.running import holder
from fftmoe.deploy.server import run_server
from fftmoe.errors import InputError
from fftmoe.report.progress import Progress
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.run import begin
from holding import held
from policies import allow
from sites import NAMES, divide, natural, over_sites

RUNS = """
import sys, time
from pathlib import Path
from fftmoe.deploy.running import running
with running(Path(sys.argv[1]), {"output": "runs/first", "address": "here"}):
    print("held", flush=True)
    time.sleep(600)
"""
OWNS = """
import sys, time
from pathlib import Path
from fftmoe.store import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def recipe(recipe_values: dict[str, Any], data_folder: Path, tmp_path: Path) -> Recipe:
    divide(data_folder, tmp_path / "divided")
    return parse_recipe(over_sites(natural(recipe_values), tmp_path / "divided"), "test")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def not_reached(*_: Any, **__: Any) -> None:
    raise AssertionError("the second process did something")


def test_a_second_server_from_one_folder_is_refused_before_it_listens(
    recipe: Recipe, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "start_superlink", not_reached)
    with held(RUNS, server) as first:
        before = files_of(server)
        with pytest.raises(InputError, match=f"in use by process {first.pid}; .*fftmoe deploy stop"):
            run_server(server, recipe, tmp_path / "second", 0.0, Progress.silent())
        assert files_of(server) == before
        assert holder(server) == {"output": "runs/first", "address": "here", "pid": first.pid}
        assert first.poll() is None
    assert not (tmp_path / "second").exists()


def test_a_second_site_from_one_folder_is_refused_before_it_connects(
    recipe: Recipe, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "serve_node", not_reached)
    monkeypatch.setattr(client_module, "set_by_signals", threading.Event)
    allow(site, recipe)
    with held(RUNS, site) as first:
        before = files_of(site)
        with pytest.raises(InputError, match=f"in use by process {first.pid}; .*fftmoe deploy stop"):
            run_client(site, tmp_path / "divided" / NAMES[0], "small", None, lambda line: None)
        assert files_of(site) == before
        assert first.poll() is None


def test_a_second_deployment_into_one_output_is_refused_before_any_site_is_asked(recipe: Recipe, tmp_path: Path):
    """Also where the first has only just begun, and nothing but its lock is there."""
    output = tmp_path / "run"
    output.mkdir()
    with held(OWNS, output) as first:
        with pytest.raises(InputError, match=f"in use by process {first.pid}"):
            prepare(recipe, output, Progress.silent())
        assert set(files_of(output)) == {"lock"}


@pytest.mark.parametrize(
    "ended", [pytest.param(False, id="that runs"), pytest.param(True, id="that has ended", marks=pytest.mark.slow)]
)
def test_a_deployment_that_waited_for_sites_meanwhile_harms_no_other(
    recipe_values: dict[str, Any], tmp_path: Path, ended: bool
):
    """Both found the output free, and the first began while the second still waited."""
    recipe, output = parse_recipe({**recipe_values, "evaluation": {}}, "test"), tmp_path / "run"
    second = compose(recipe)
    output.mkdir()
    with held(OWNS, output) as first:
        if ended:
            (output / "config.yaml").write_text(json.dumps({"name": "first"}))
            first.kill()
            first.wait()
        before = {name: data for name, data in files_of(output).items() if name != "lock"}
        with pytest.raises(InputError, match=r"holds another run|in use by process"):
            begin(second, recipe, output, Progress.silent(), open_engine)
        assert {name: data for name, data in files_of(output).items() if name != "lock"} == before
