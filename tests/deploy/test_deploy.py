"""Federations over sites as an operator runs them: with processes, TLS and keys, and with failures."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server
from typing import Any

import pytest
import yaml

from fftmoe.config import apply_override, load_recipe, parse_override, parse_recipe
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import run
from policies import allow
from shared_fixtures import COLOURS
from sites import NAMES, divide, natural, over_sites

pytestmark = [pytest.mark.network, pytest.mark.slow]
# Processes in the background of a script ignore interrupts; these must receive them.
MAIN = "import signal, fftmoe.cli.app as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
SECONDS = 600.0
# For private runs, in which the server does not know the routing.
BRIEFLY = ("federation.rounds=3", "adapter.residents=balanced", "adapter.balance=switch")
RESULTS = ("adapter/adapter_model.safetensors", "checkpoints/*.safetensors")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", MAIN, "deploy", *map(str, arguments)]


def wait_for(what: str, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what} took longer than {seconds} s"
        time.sleep(0.1)


class LocalDeployment:
    """A deployment of four sites on the loopback of this machine."""

    def __init__(self, folder: Path, data_folder: Path, values: dict[str, Any]) -> None:
        self.folder, self.values = folder, values
        divide(data_folder, folder / "data")
        with create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        subprocess.run(
            command("init", folder / "d", "--sites", ",".join(NAMES), "--address", address), check=True, timeout=SECONDS
        )
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(over_sites(values, folder / "data")))
        self.served = [load_recipe(over_sites(values, folder / "data"), may_read=False)]
        self.tiers = [budget.name for budget in compose(parse_recipe(values, "here")).budgets.values()]
        self.approve(())
        self.stack = ExitStack()
        self.sites: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "LocalDeployment":
        return self

    def __exit__(self, *_: object) -> None:
        for site in self.sites.values():
            site.kill()
            site.wait(timeout=SECONDS)
        self.stack.close()

    def start_site(self, number: int) -> None:
        name = NAMES[number]
        log = self.stack.enter_context((self.folder / f"{name}.log").open("ab"))
        self.sites[name] = subprocess.Popen(
            command(
                "client",
                self.folder / "d" / "sites" / name,
                "--data",
                self.folder / "data" / name,
                "--budget",
                self.tiers[number],
            ),
            stdout=log,
            stderr=log,
            env={**os.environ, "FFTMOE_CACHE": str(self.folder / f"{name}-cache")},
        )

    def approve(self, flags: Sequence[str]) -> None:
        """Let every site serve the recipe with these overrides, as its operator would with `deploy site review`."""
        values = copy.deepcopy(over_sites(self.values, self.folder / "data"))
        for setting in flags[1::2]:
            apply_override(values, *parse_override(setting))
        self.served.append(load_recipe(values, may_read=False))
        for name in NAMES:
            allow(self.folder / "d" / "sites" / name, *self.served, labels=COLOURS, most_rounds=10**6)

    @contextmanager
    def server(self, output: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
        self.approve(flags)
        log = self.stack.enter_context((self.folder / "server.log").open("a+"))
        with subprocess.Popen(
            command(
                "server",
                self.folder / "d" / "server",
                "--recipe",
                self.recipe,
                "--output",
                output,
                "--wait",
                "300",
                *flags,
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


def rows(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def results(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in RESULTS for path in output.glob(name)}


@pytest.fixture(scope="module")
def values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    """Three tiers, all clients in every round, and enough rounds to kill a process in the middle of the run."""
    three = [
        {"name": "small", "fraction": 0.5, "top_k": 1, "experts": 2},
        {"name": "medium", "fraction": 0.25, "top_k": 2, "experts": 3},
        {"name": "large", "fraction": 0.25, "top_k": 2, "experts": 5},
    ]
    chosen = natural(recipe_values, rounds=12, deadline_seconds=120.0)
    return {**chosen, "budgets": three, "adapter": {**chosen["adapter"], "router": "personal"}}


@pytest.fixture(scope="module")
def local(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one machine with all data."""
    return run(parse_recipe(values, "here"), tmp_path_factory.mktemp("local") / "run").folder


@pytest.fixture(scope="module")
def federation(
    values: dict[str, Any], data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalDeployment]:
    """Four sites that serve one run after the other."""
    with LocalDeployment(tmp_path_factory.mktemp("federation"), data_folder, values) as made:
        for number in range(4):
            made.start_site(number)
        yield made


def test_four_sites_produce_the_bytes_of_one_machine(federation: LocalDeployment, local: Path, tmp_path: Path):
    """The costs of each tier are also those of the same run on one machine, and those of the plan."""
    output = tmp_path / "run"
    with federation.server(output) as server:
        wait_for("the first round", lambda: len(rows(output)) > 1 or server.poll() is not None)
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    assert results(output) == results(local), federation.logs()
    here, there = summary(local), summary(output)
    assert there["faults"] == {}
    for tier, costs in here["per_client_round_by_tier"].items():
        found = there["per_client_round_by_tier"][tier]
        assert {k: v for k, v in found.items() if k != "seconds"} == {k: v for k, v in costs.items() if k != "seconds"}
    planned = forecast(parse_recipe(federation.values, "planned"))
    for tier in planned.tiers:
        found = there["per_client_round_by_tier"][tier.budget.name]
        # The plan is for the first round, for updates in which every expert was trained and every number is long.
        assert found["bytes_down"] == pytest.approx(tier.bytes_down, rel=0.01)
        assert 0.8 * tier.bytes_up <= found["bytes_up"] <= tier.bytes_up


def test_private_sums_over_sites_are_those_of_one_machine(federation: LocalDeployment, tmp_path: Path):
    private = ("privacy={min_contributors: 2}", *BRIEFLY)
    flags = [part for setting in private for part in ("--set", setting)]
    values = copy.deepcopy(federation.values)
    for setting in private:
        apply_override(values, *parse_override(setting))
    here = run(parse_recipe(values, "here"), tmp_path / "here").folder
    with federation.server(tmp_path / "run", *flags) as server:
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    assert results(tmp_path / "run") == results(here), federation.logs()
    there = summary(tmp_path / "run")
    assert there["faults"] == {}
    assert there["privacy"] == summary(here)["privacy"] != {}
    assert not list((tmp_path / "run").rglob("clients/*"))  # the sites keep their own states


@pytest.mark.parametrize(
    "privacy",
    [
        "{min_contributors: 2, clip_norm: 0.1, noise_multiplier: 1.0, delta: 1.0e-3}",
        "{min_contributors: 2, examples: {clip_norm: 0.1, noise_multiplier: 1.0, delta: 1.0e-3}}",
    ],
    ids=["clients", "examples"],
)
def test_a_private_federation_over_sites_reports_its_epsilon(federation: LocalDeployment, tmp_path: Path, privacy: str):
    declared = (f"privacy={privacy}", "data.labels=[blue, green, red]")
    flags = [part for setting in (*declared, *BRIEFLY) for part in ("--set", setting)]
    with federation.server(tmp_path / "run", *flags) as server:
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    found = summary(tmp_path / "run")
    assert (found["rounds_completed"], found.get("faults", {})) == (3, {})
    spent = found["privacy"]["examples"] if "examples" in privacy else found["privacy"]
    assert spent["epsilon"] > 0
    # Noise is drawn again, so the same seed gives another model.
    with federation.server(tmp_path / "again", *flags) as server:
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    assert results(tmp_path / "again").keys() == results(tmp_path / "run").keys()
    assert results(tmp_path / "again") != results(tmp_path / "run")


def test_a_killed_server_continues_to_the_same_bytes(federation: LocalDeployment, local: Path, tmp_path: Path):
    output = tmp_path / "run"
    for last in sorted(random.Random(5).sample(range(1, 11), 2)):
        with federation.server(output) as server:
            wait_for(
                f"round {last}",
                lambda last=last: len(rows(output)) > last or server.poll() is not None,  # type: ignore[misc]
            )
            assert server.poll() is None, federation.logs()
            server.send_signal(signal.SIGKILL)
    assert not (output / "summary.json").exists()
    with federation.server(output) as server:
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    assert results(output) == results(local)
    assert summary(output)["faults"] == {}


def test_a_site_is_killed_in_a_round_and_restarted(federation: LocalDeployment, tmp_path: Path):
    """The run completes, and the round without the site records a fault."""
    output = tmp_path / "run"
    with federation.server(output) as server:
        wait_for("the second round", lambda: len(rows(output)) > 2 or server.poll() is not None)
        assert server.poll() is None, federation.logs()
        federation.sites[NAMES[1]].send_signal(signal.SIGKILL)
        federation.sites[NAMES[1]].wait(timeout=SECONDS)
        federation.start_site(1)
        assert server.wait(timeout=SECONDS) == 0, federation.logs()
    found = summary(output)
    assert found["rounds_completed"] == 12
    lost = [fault for row in rows(output) for fault in row.get("faults", ())]
    assert all(fault["client_id"] == 1 for fault in lost)
    assert sum(found["faults"].values()) == len(lost)


def test_deploy_stop_ends_a_server_and_a_site(federation: LocalDeployment, tmp_path: Path):
    output = tmp_path / "run"
    server_folder, site_folder = federation.folder / "d" / "server", federation.folder / "d" / "sites" / NAMES[3]
    endless = ("--set", "federation.rounds=100000")
    with federation.server(output, *endless) as server:
        wait_for("the first round", lambda: len(rows(output)) > 1 or server.poll() is not None)
        assert server.poll() is None, federation.logs()  # otherwise nothing runs, and the logs say why
        shown = subprocess.run(command("status", server_folder), capture_output=True, text=True, timeout=SECONDS)
        assert "round " in shown.stdout
        assert all(f"site {name}: online" in shown.stdout for name in NAMES)
        subprocess.run(command("stop", server_folder), check=True, timeout=SECONDS)
        assert server.wait(timeout=SECONDS) == 130
    subprocess.run(command("stop", site_folder), check=True, timeout=SECONDS)
    assert federation.sites[NAMES[3]].wait(timeout=SECONDS) == 0, federation.logs()
    for folder in (server_folder, site_folder):
        shown = subprocess.run(command("status", folder), capture_output=True, text=True, timeout=SECONDS)
        assert shown.stdout.replace("\n", "") == f"nothing runs from {folder}"
    federation.start_site(3)
    before = len(rows(output))
    with federation.server(output, *endless) as server:  # the same command continues
        wait_for("another round", lambda: len(rows(output)) > before or server.poll() is not None)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=SECONDS) == 130, federation.logs()
    assert [row["round"] for row in rows(output)] == list(range(len(rows(output))))
