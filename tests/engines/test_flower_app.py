"""The app for Flower's own tools: `flwr run` on a stock SuperLink ends with the bytes of one machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import create_server
from types import SimpleNamespace
from typing import Any, cast
from zipfile import ZipFile

import httpx
import pytest
from flwr.app import Context
from flwr.serverapp import Grid

from fftmoe import flower_app
from fftmoe.config import parse_recipe
from fftmoe.errors import FftmoeError, InputError, RunError
from fftmoe.report.progress import Progress
from fftmoe.setup.compose import compose
from fftmoe.setup.run import run
from policies import allow
from shared_fixtures import COLOURS
from sites import NAMES, divide, natural, over_sites

pytestmark = [pytest.mark.network, pytest.mark.slow]
APP = Path(__file__).parents[2] / "examples" / "flower"
BIN = Path(sys.executable).parent
SECONDS = 600.0
RESULTS = ("adapter/adapter_model.safetensors", "checkpoints/*.safetensors")


class Stock:
    """Flower's own SuperLink and SuperNodes on this machine's loopback, each with a separate home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._stack = ExitStack()

    def __enter__(self) -> "Stock":
        return self

    def __exit__(self, *_: object) -> None:
        # Processes end in reverse order of their start; their own children end when the parent is gone.
        self._stack.close()

    def start_link(self, *flags: str) -> None:
        """Start a SuperLink and wait until it is ready."""
        self._start("link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port), *flags)
        wait_for("the SuperLink", lambda: healthy(self.port))
        (self.folder / "cli").mkdir()
        (self.folder / "cli" / "config.toml").write_text(
            f'[superlink]\ndefault = "stock"\n\n[superlink.stock]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )

    def start_node(self, name: str, config: dict[str, Any]) -> None:
        """Start a SuperNode with this node configuration."""
        flags = ("--superlink", f"127.0.0.1:{self.port}", "--host", "127.0.0.1", "--port", str(free_port()))
        self._start(name, "flower-supernode", "--insecure", *flags, "--node-config", as_toml(config, " "))

    def run(self, config: dict[str, Any], *flags: str) -> str:
        """The output of `flwr run` with this run configuration, after the run has ended."""
        file = self.folder / "run.toml"
        file.write_text(as_toml(config, "\n"))
        done = self._flwr("run", str(APP), "stock", "--run-config", str(file), "--stream", *flags)
        # Flower's command ends with status 0 however the run ended: only the SuperLink and the log know.
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def ended(self, log: str) -> tuple[str, str]:
        """How the run of this log ended, and why, as the SuperLink says it."""
        number = re.search(r"started run (\d+)", log)
        assert number, log
        listed = self._flwr("ls", "stock", "--run-id", number[1], "--format", "json").stdout
        [row] = json.loads(listed[listed.index("{") :])["runs"]
        return row["status"], row["status-details"]

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "flwr"), *arguments]
        return subprocess.run(command, env=self._env("cli"), capture_output=True, text=True, timeout=SECONDS)

    def _start(self, name: str, program: str, *flags: str) -> None:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            [str(BIN / program), *flags], stdout=log, stderr=log, env=self._env(name), cwd=self.folder
        )
        self._stack.callback(end, process)

    def _env(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",  # Flower finds its other programs there
            "NO_PROXY": "127.0.0.1",
            "FLWR_HOME": str(self.folder / name),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "UV_OFFLINE": "1",  # a SuperLink installs what an app depends on: this one asks for nothing
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": "local",  # not a cluster that happens to run on this machine
            "FFTMOE_CACHE": str(self.folder / f"{name}-cache"),
        }


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, f"{what} took longer than {SECONDS} s"
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=30.0)


def as_toml(config: dict[str, Any], between: str) -> str:
    """A string as JSON writes it is one for TOML as well."""
    return between.join(f"{key}={json.dumps(value)}" for key, value in config.items())


def results(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in RESULTS for path in output.glob(name)}


@pytest.fixture(scope="module")
def three_authors(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data without the fourth author: every node starts a process for every message, and these take long."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copy(data_folder / "test.csv", folder)
    rows = (data_folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(row for row in rows if NAMES[3] not in row))
    return folder


@pytest.fixture(scope="module")
def values(recipe_values: dict[str, Any], three_authors: Path) -> dict[str, Any]:
    """Three tiers, and state that stays with a site from one of its processes to the next."""
    budgets = [
        {"name": "small", "fraction": 0.34, "top_k": 1, "experts": 2},
        {"name": "medium", "fraction": 0.33, "top_k": 2, "experts": 3},
        {"name": "large", "fraction": 0.33, "top_k": 2, "experts": 5},
    ]
    chosen = natural(recipe_values, rounds=2, clients_per_round=3)
    data = {**chosen["data"], "source": str(three_authors)}
    return {**chosen, "data": data, "budgets": budgets, "adapter": {**chosen["adapter"], "router": "personal"}}


@pytest.fixture(scope="module")
def stock(values: dict[str, Any], three_authors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """A SuperLink and three SuperNodes of three tiers."""
    folder = tmp_path_factory.mktemp("stock")
    divide(three_authors, folder / "data")
    tiers = [budget.name for budget in compose(parse_recipe(values, "here")).budgets.values()]
    assert sorted(tiers) == ["large", "medium", "small"]
    with Stock(folder) as made:
        made.start_link()
        for number, (name, tier) in enumerate(zip(NAMES, tiers, strict=False)):
            served = parse_recipe(over_sites(values, folder / "data"), "served")
            allow(folder / f"{name}-own", served, labels=COLOURS)
            site = {"site": name, "client-id": number, "data": f"data/{name}", "budget": tier, "folder": f"{name}-own"}
            made.start_node(name, site)
        yield made


def test_flower_builds_the_app_and_it_carries_no_code(tmp_path: Path):
    built = subprocess.run(
        [str(BIN / "flwr"), "build", "--app", str(APP)],
        cwd=tmp_path,
        env={**os.environ, "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [bundle] = tmp_path.glob("*.fab")
    assert {name for name in ZipFile(bundle).namelist() if not name.startswith(".info/")} == {"pyproject.toml"}


def test_flowers_simulation_ends_with_the_bytes_of_one_machine(
    values: dict[str, Any], three_authors: Path, tmp_path: Path
):
    """Its nodes state no budget, so that each takes the largest tier: here the only one."""
    values = {**values, "budgets": [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 3}]}
    local, output = run(parse_recipe(values, "here"), tmp_path / "local"), tmp_path / "flower"
    data, folder = tmp_path / "data", tmp_path / "stock"
    divide(three_authors, data)
    for number, name in enumerate(NAMES):
        (data / name).rename(data / f"site-{number}")
    folder.mkdir()
    recipe = json.dumps(over_sites(values, data))
    for number in range(3):
        allow(data / f"site-{number}", parse_recipe(over_sites(values, data), "served"), labels=COLOURS)
    with Stock(folder) as made:
        # As `flwr run <app> local` would, which leaves its SuperLink running for ever.
        made.start_link("--simulation")
        size = "num-supernodes=3 client-resources-num-cpus=1 init-args-num-cpus=2"
        config = {"recipe": recipe, "output": str(output), "sites": 3, "sites-folder": str(data)}
        log = made.run(config, "--federation-config", size)
    assert (output / "summary.json").exists(), log
    assert results(output) == results(local.folder)


def test_stock_nodes_of_three_tiers_end_with_the_bytes_of_one_machine(
    stock: Stock, values: dict[str, Any], tmp_path: Path
):
    local, output = run(parse_recipe(values, "here"), tmp_path / "local"), tmp_path / "flower"
    recipe = json.dumps(over_sites(values, stock.folder / "data"))
    log = stock.run({"recipe": recipe, "output": str(output), "sites": 3, "wait-seconds": 300.0})
    assert (output / "summary.json").exists(), log + stock.logs()
    assert results(output) == results(local.folder)
    here, there = (json.loads((folder / "summary.json").read_text()) for folder in (local.folder, output))
    assert there["faults"] == {}
    assert there["accuracy_by_tier"] == here["accuracy_by_tier"]
    assert list((stock.folder / f"{NAMES[0]}-own").rglob("*.safetensors"))  # its state is in the configured folder


def test_a_wrong_recipe_ends_the_run_with_our_sentence(stock: Stock, values: dict[str, Any], tmp_path: Path):
    recipe = json.dumps({**values, "federation": {**values["federation"], "round": 3}})
    log = stock.run({"recipe": recipe, "output": str(tmp_path / "flower"), "sites": 3})
    sentence = "unknown key 'federation.round'; did you mean 'rounds'?"
    status, details = stock.ended(log)
    assert status == "finished:failed"
    assert sentence in details
    assert sentence in log
    assert not (tmp_path / "flower").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"site": "a", "data": "."}, "has no 'client-id'"),
        ({"site": "a", "data": "ag_news", "client-id": 0}, "data='ag_news' is not a folder"),
        ({"site": "a", "data": ".", "client-id": "first"}, "client-id must be a number of at least 0"),
        ({"site": "a", "data": ".", "client-id": -1}, "client-id must be a number of at least 0"),
    ],
)
def test_a_node_configuration_that_cannot_be(config: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        flower_app.site_settings(context(node_config=config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sites": 0}, "sites must be a number of at least 1"),
        ({"sites": "all"}, "sites must be a number of at least 1"),
        ({"wait-seconds": "long"}, "wait-seconds must be a number"),
        ({"recipe": "{'seed': 3}"}, "starts like JSON but is not valid JSON"),
        ({"recipe": "quickstrat"}, "did you mean 'quickstart'"),
        ({"recipe": "quickstart"}, "over sites, .* does not support evaluation.local_only"),
    ],
)
def test_a_run_configuration_that_cannot_be(config: dict[str, Any], words: str):
    whole = {"recipe": "quickstart", "output": "runs", "sites": 2, "wait-seconds": 1.0, **config}
    with pytest.raises(InputError, match=words):
        flower_app.main(cast(Grid, None), context(run_config=whole))


ANNA, BEN = {"site": "anna", "client_id": 0}, {"site": "ben", "client_id": 1}


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        ({7: ANNA}, RunError, "1 of 2 sites came within 0.2 s$"),
        ({7: ANNA, 9: "node unavailable"}, RunError, "one node cannot say which site it is: node unavailable"),
        ({7: ANNA, 9: ANNA}, InputError, "two nodes say that they are site anna"),
        ({7: ANNA, 9: {**BEN, "client_id": 2}}, InputError, "must be 0 to 1, each once: anna is 0, ben is 2"),
    ],
)
def test_nodes_that_cannot_form_a_federation(
    monkeypatch: pytest.MonkeyPatch, answers: dict[int, Any], error: type[FftmoeError], words: str
):
    with pytest.raises(error, match=words):
        who(monkeypatch, lambda looks: answers)


def test_a_node_that_has_gone_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    """Flower counts a node that was cut off as there for another minute; it comes back as another one."""
    looks = [{7: BEN, 9: "node unavailable"}, {7: BEN, 9: "node unavailable", 11: ANNA}]
    assert who(monkeypatch, lambda number: looks[number]) == {"anna": (11, 0), "ben": (7, 1)}


def who(monkeypatch: pytest.MonkeyPatch, nodes: Callable[[int], dict[int, Any]]) -> dict[str, tuple[int, int]]:
    """The two sites that are found if `nodes` gives the connected nodes and their answers at each look."""

    class Nodes:
        looks = 0

        def get_node_ids(self) -> list[int]:
            self.answers = nodes(self.looks)
            self.looks += 1
            return list(self.answers)

    def ask(grid: Nodes, asked: list[int], job: object, seconds: float) -> dict[int, Any]:
        return {node: grid.answers[node] for node in asked}

    monkeypatch.setattr(flower_app, "ask", ask)
    return flower_app.introduce(cast(Grid, Nodes()), 2, 0.2, Progress.silent(), look_seconds=0.01)


def context(**configs: dict[str, Any]) -> Context:
    return cast(Context, SimpleNamespace(**{"node_config": {}, "run_config": {}, **configs}))
