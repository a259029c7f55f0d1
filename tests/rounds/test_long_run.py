"""A long run with faults needs constant memory, open files and disk space."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from fftmoe.config import load_recipe
from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.records import unpack_plan
from fftmoe.report.progress import Progress
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import run
from fftmoe.store import RunFolder

ROUNDS, CLIENTS, FAULTS = 500, 20, 0.1
WARM = 100  # rounds
GROWING = ("metrics.jsonl", "rows.txt")  # a row for each round, and its digest
BLOCK = 50  # rounds
MOST_MIB = 1.0  # of growth in a hundred rounds


class Losing:
    """Real clients, of which a tenth is lost: some do not answer, some answer too late, some answer nonsense."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    @property
    def reliable(self) -> bool:
        return False

    def absent(self) -> tuple[int, ...]:
        return ()

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        for reply in self._inner.run_clients(groups):
            assert isinstance(reply, Reply)
            message = next(message for group in groups for c, message in group if c == reply.client_id)
            chance = float(np.random.default_rng([unpack_plan(message)[0].round, reply.client_id]).random())
            kinds = ("failed", "late", "rejected")
            kind = kinds[int(3 * chance / FAULTS)] if chance < FAULTS else None
            if kind == "rejected":
                yield reply._replace(message=reply.message[:100])
            elif kind:
                yield Fault(reply.client_id, kind, "for a test")
            else:
                yield reply

    def close(self) -> None:
        self._inner.close()

    def peak_rss_mib(self) -> float:
        return self._inner.peak_rss_mib()


class Watch(Progress):
    """Notes after every round what this process and its folder hold."""

    def __init__(self, folder: Path, rows: list[dict[str, float]]) -> None:
        super().__init__(Console(quiet=True))
        self._folder, self._rows = folder, rows

    def round_done(self, row: Mapping[str, Any]) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        self._rows.append(
            {
                "rss_mib": pages * os.sysconf("SC_PAGESIZE") / 2**20,
                "descriptors": len(os.listdir("/proc/self/fd")),
                "files": len(files),
                "faults": len(row.get("faults", ())),
                "disk_bytes": sum(path.stat().st_size for path in files if path.name not in GROWING),
            }
        )


def main(recipe_file: str, folder: str) -> None:
    rows: list[dict[str, float]] = []

    def opened(experiment: Experiment, folder: RunFolder) -> Engine:
        return Losing(open_engine(experiment, folder))

    run(load_recipe(recipe_file, []), Path(folder), Watch(Path(folder), rows), opened)
    sys.stdout.write(json.dumps(rows))


@pytest.mark.slow
def test_five_hundred_rounds_with_faults_need_constant_resources(recipe_values: dict[str, Any], tmp_path: Path):
    """The run has its own process, so that nothing else is in its memory."""
    recipe = {
        **recipe_values,
        "partition": {"kind": "dirichlet", "alpha": 1.0, "num_clients": CLIENTS, "min_examples": 1},
        "adapter": {**recipe_values["adapter"], "router": "personal"},
        "federation": {
            **recipe_values["federation"],
            "rounds": ROUNDS,
            "clients_per_round": CLIENTS,
            "local_steps": 1,
            "batch_size": 2,
            "learning_rate": 0.001,
        },
        "evaluation": {"baselines": "off", "local_only": False, "every": 50},
        "trackers": [],
    }
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, __file__, str(tmp_path / "long.yaml"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7200)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == ROUNDS + 1
    known = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    share = known["faults"].sum() / (ROUNDS * CLIENTS)
    # Of blocks of rounds, so that one step counts little: Python's table of interned strings grows by megabytes.
    rss = known["rss_mib"][WARM : WARM + (ROUNDS - WARM) // BLOCK * BLOCK]
    blocks = np.median(rss.reshape(-1, BLOCK), axis=1)
    growth = 100 / BLOCK * np.median(np.diff(blocks))
    print(
        f"{ROUNDS} rounds of {CLIENTS} clients, {share:.1%} faults: {growth:+.2f} MiB in a hundred rounds, "
        f"descriptors {set(known['descriptors'][WARM:])}, files {set(known['files'][WARM:])}"
    )
    assert share == pytest.approx(FAULTS, abs=0.01)
    assert growth < MOST_MIB
    assert len(set(known["descriptors"][1:])) == 1
    assert len(set(known["files"][WARM:])) == 1
    assert np.ptp(known["disk_bytes"][WARM:]) < 2**14  # headers hold decimal numbers of more or fewer digits


if __name__ == "__main__":
    main(*sys.argv[1:])
