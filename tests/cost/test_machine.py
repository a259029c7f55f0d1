"""The memory of this machine, and what a run is expected to take of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.cost import machine
from fftmoe.cost.machine import available_mib, control_groups, total_mib
from fftmoe.data import WithPrefix
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import resident_mib

MIB = 2**20


def test_no_more_memory_is_available_than_there_is():
    assert 0 < available_mib() <= total_mib()


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_control_group_counts_less_what_files_can_give_back(tmp_path: Path, version: int):
    root, process = tmp_path / "cgroup", tmp_path / "self"
    names, cache = (
        (("memory.max", "memory.current"), "inactive_file")
        if version == 2
        else (("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file")
    )
    base = root if version == 2 else root / "memory"
    for folder, values in ((base, ("max", 700)), (base / "a", (512, 300)), (base / "a" / "b", (1024, 200))):
        folder.mkdir(parents=True)
        for name, value in zip(names, values, strict=True):
            number = value if isinstance(value, str) else str(value * MIB)
            (folder / name).write_text(f"{2**63 if version == 1 and value == 'max' else number}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cache} {100 * MIB}\n")
    process.write_text("0::/a/b\n" if version == 2 else "5:cpu,cpuacct:/x\n4:memory:/a/b\n")
    groups = [group for group in control_groups(root, process) if group[0] < 2**40]
    assert sorted(groups) == [(512.0, 200.0), (1024.0, 100.0)]
    assert min(limit - used for limit, used in control_groups(root, process)) == 312.0


def test_a_machine_without_control_groups_has_no_limit(tmp_path: Path):
    assert control_groups(tmp_path / "none", tmp_path / "none") == [(float("inf"), 0.0)]


def test_the_memory_of_every_process_is_expected_unless_clients_are_remote(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Each process takes the 100 MiB of this one, and the files of cached states."""
    monkeypatch.setattr(machine, "peak_rss_mib", lambda: 100.0)
    for engine, processes in (
        ({"workers": 1}, 1),
        ({"workers": 3}, 4),
        ({"workers": 1, "kind": "flower"}, 2),  # Ray starts a process even for one
    ):
        experiment = compose(parse_recipe({**recipe_values, "engine": engine}, "test"))
        cached = [e.path.stat().st_size for e in (experiment.train, experiment.test) if isinstance(e, WithPrefix)]
        assert sum(cached) > 0
        assert resident_mib(experiment) == pytest.approx(processes * (100 + sum(cached) / 2**20))
    assert resident_mib(dataclasses.replace(experiment, remote=True)) is None
