"""Flower's simulation produces the same bytes as the local engine."""

import json
import subprocess
import sys
from pathlib import Path
from socket import create_server

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]
MAIN = "import fftmoe.cli.app as c; c.main()"
RESULTS = ("adapter/adapter_model.safetensors", "checkpoints/round-000002.safetensors")
SETTINGS = {
    "plain": ("evaluation.local_only=true",),
    "state on clients": ("adapter.router=personal", "federation.upload=int8", "evaluation.personal=true"),
    "closed-form head": ("head={kind: closed-form, num_features: 37, every: 1}",),
    "LoRA": ("method=hetlora",),
    "private sums": ("privacy={min_contributors: 2}", "adapter.residents=balanced"),
}


def finish(recipe_file: Path, folder: Path, *settings: str) -> Path:
    flags = [part for setting in ("trackers=[]", *settings) for part in ("--set", setting)]
    command = [sys.executable, "-c", MAIN, "run", str(recipe_file), "--output", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_the_simulation_produces_the_bytes_of_the_local_engine(recipe_file: Path, tmp_path: Path, name: str):
    local = finish(recipe_file, tmp_path / "local", *SETTINGS[name])
    flower = finish(recipe_file, tmp_path / "flower", "engine.kind=flower", "engine.workers=2", *SETTINGS[name])
    for result in RESULTS:
        assert (local / result).read_bytes() == (flower / result).read_bytes()
    here, there = (json.loads((folder / "summary.json").read_text()) for folder in (local, flower))
    assert there["faults"] == {}
    for values in (here, there):
        for clock in ("seconds", "client_seconds", "peak_rss_mib", "expected_rss_mib"):
            values.pop(clock, None)
        for tier in values["per_client_round_by_tier"].values():
            del tier["seconds"]
        for tier in values["prediction"].values():
            tier.pop("seconds_per_client_round", None)
    assert here == there


def test_the_simulation_tunes_a_real_language_model_to_the_same_bytes(tmp_path: Path):
    """SmolLM2-135M in the precision and with the cached states that are its defaults."""
    few = ("federation.rounds=2", "federation.local_steps=1", "federation.clients_per_round=3", "data.test_examples=7")
    only = ("evaluation.baselines=off", "evaluation.generate=null", "evaluation.every=2")
    here = finish(Path("instructions"), tmp_path / "local", *few, *only, "engine.workers=1")
    there = finish(Path("instructions"), tmp_path / "flower", *few, *only, "engine.kind=flower", "engine.workers=2")
    for result in RESULTS:
        assert (here / result).read_bytes() == (there / result).read_bytes()


def test_the_simulation_runs_on_an_existing_ray_cluster(recipe_file: Path, tmp_path: Path):
    """The cluster has one node on the loopback, and it still runs afterwards."""
    with create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    flags = ["--port", str(port), "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    with subprocess.Popen([*ray, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as cluster:
        try:
            assert cluster.stdout is not None
            assert any("Ray runtime started" in line for line in cluster.stdout)
            local = finish(recipe_file, tmp_path / "local")
            settings = ("engine.kind=flower", f"engine.ray_address=127.0.0.1:{port}")
            there = finish(recipe_file, tmp_path / "there", *settings)
            assert cluster.poll() is None
        finally:
            cluster.terminate()
            cluster.wait(timeout=60)
    for result in RESULTS:
        assert (local / result).read_bytes() == (there / result).read_bytes()
