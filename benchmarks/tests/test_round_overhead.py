"""The benchmark of rounds: its plain loop trains as our rounds do, and its tables agree with the timings."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Load = Callable[[str], Any]

TINY = {
    "clients": 3,
    "rounds": 3,
    "examples": 41,  # 14, 14 and 13 for each client, so that weights matter
    "batch_size": 5,
    "words": 5,
    "vocabulary": 31,
    "hidden": 22,
    "heads": 2,
    "intermediate": 13,
    "experts": 3,
    "expert_dim": 7,
    "labels": 3,
}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module


def test_the_plain_loop_does_the_same_fit_as_our_rounds(load: Load, tmp_path: Path):
    prepare, task_module = load("round_harnesses.prepare"), load("round_harnesses.task")
    plain, ours, summary = (load(f"round_harnesses.{name}") for name in ("plain", "ours", "summary"))
    prepare.prepare(tmp_path, prepare.Setting(**TINY))
    times, expected = ours.rounds(tmp_path, tmp_path / "run")
    ended: list[None] = []
    task = task_module.Task(tmp_path)
    found = plain.rounds(task, lambda: ended.append(None))
    assert len(ended) == len(times) - 1 == TINY["rounds"]
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in expected.items():
        # Every weight goes about 1e-3 a round. The two sum the clients in another order and precision; AdamW divides
        # a gradient by its size, so that the rounding of a small one becomes a larger part of the step.
        assert float((found[name] - tensor).abs().max()) < 3e-6, name
        assert float((tensor - task.initial[name]).abs().max()) > 3e-4, name
    # What the benchmark itself looks at, and that it would see clients weighed alike.
    assert summary.distance(found, expected, task.initial) < 1e-4 < summary.SAME_FIT
    task.weights = [1, 1, 1]
    assert summary.distance(plain.rounds(task, lambda: None), expected, task.initial) > 1e-3


def test_the_first_and_the_last_round_are_not_counted(load: Load):
    assert load("round_harnesses.task").steady([0.0, 5.0, 6.0, 8.0, 20.0]) == [1.0, 2.0]


RUNS = {
    "fftmoe": [[0.1, 0.3, 0.2], [0.3, 0.3, 0.3], []],
    "plain": [[0.2, 0.2, 0.2], [0.1, 0.1, 0.1], [0.4]],
    "pfl": [[0.2], [0.2], [0.2]],
    "flower": [[4.0], [9.0], [4.0]],
}


def test_ratios_are_taken_within_a_repetition(load: Load):
    summary = load("round_harnesses.summary")
    assert summary.ratio(RUNS, "fftmoe", "plain") == pytest.approx((2.0, 1.0, 3.0))
    assert summary.ratio(RUNS, "flower", "fftmoe") == pytest.approx((25.0, 20.0, 30.0))
    assert summary.ratio(RUNS, "fftmoe", "nobody") is None
    _, goals = summary.goals_table(RUNS)
    assert [row[1:] for row in goals] == [
        ("2.00 (1.00 to 3.00)", "missed"),
        ("1.25 (1.00 to 1.50)", "missed"),
        ("25.00 (20.00 to 30.00)", "met"),
    ]
    assert summary.goals_table({"plain": [[1.0]]})[1][0][1:] == ("–", "not measured")


def test_every_harness_has_its_row_and_faults_are_reported(load: Load):
    summary = load("round_harnesses.summary")
    runs, failed = {**RUNS, "pfl": [[], [], []]}, {"pfl": "no module", "fftmoe": "killed"}
    apart = {"plain": 0.5, "flower": 1e-5}
    header, rows = summary.rounds_table(runs, apart, failed)
    assert {len(row) for row in rows} == {len(header)}
    assert rows == [
        ("fftmoe (failed at times)", "250 (200 to 300)", "2.00 (1.00 to 3.00)", "+50", "–"),
        ("plain loop", "200 (100 to 400)", "1.00 (1.00 to 1.00)", "+0", "5.0e-01"),
        ("pfl-research: did not run", "–", "–", "–", "–"),
        ("Flower's simulation", "4000 (4000 to 9000)", "20.00 (10.00 to 90.00)", "+3800", "1.0e-05"),
    ]
    wrong = summary.problems(apart, failed)
    assert wrong == ["pfl: no module", "fftmoe: killed", "plain did another fit: distance 0.5"]
    assert summary.problems({"plain": float("nan")}, {}) == ["plain did another fit: distance nan"]
    assert summary.problems({"plain": 1e-5}, {}) == []
    kept = json.loads(json.dumps(summary.result(runs, apart, failed, {"seconds": {}}, machine="m")))
    assert kept["machine"] == "m"
    assert kept["round_seconds"] == {"fftmoe": [0.2, 0.3], "plain": [0.2, 0.1, 0.4], "pfl": [], "flower": [4, 9, 4]}
    assert kept["ratio_to_plain"]["fftmoe"] == pytest.approx({"median": 2.0, "least": 1.0, "greatest": 3.0})
    assert kept["failed"] == failed


def test_parts_are_ranked_and_add_up(load: Load):
    _, rows = load("round_harnesses.summary").parts_table({"a": 0.01, "b": 0.03})
    assert rows == [("b", "30.0", "75%"), ("a", "10.0", "25%"), ("all", "40.0", "100%")]


def test_each_repetition_begins_with_another_harness(load: Load):
    calls: list[str] = []

    def rounds(name: str) -> list[float]:
        calls.append(name)
        return [] if name == "b" else [1.0, 2.0, 4.0]

    bench = SimpleNamespace(pythons=dict.fromkeys("abc"), rounds=rounds)
    runs = load("round_overhead").measure(bench, 4)
    assert "".join(calls) == "abcbcacababc"
    assert runs == {"a": [[1.0, 2.0, 4.0]] * 4, "b": [[]] * 4, "c": [[1.0, 2.0, 4.0]] * 4}


def test_a_harness_that_cannot_be_installed_is_a_row_and_the_status(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    benchmark, environments = load("round_overhead"), load("round_harnesses.environments")

    def python_of(harness: str, folder: Path) -> Path:
        if harness == "flower":
            raise environments.NoEnvironment("no such version")
        return Path("python")

    def call(_: object, python: Path, module: str, *arguments: str) -> dict[str, Any]:
        return {"seconds": {"forward": 0.5}, "absent": []} if module == "breakdown" else {"seconds": [0.25]}

    monkeypatch.setattr(benchmark, "python_of", python_of)
    monkeypatch.setattr(benchmark.Bench, "call", call)
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path / "cache"))
    results = tmp_path / "results.json"
    options = ["--repetitions", "2", "--rounds", "3", "--work", str(tmp_path / "work"), "--results", str(results)]
    assert benchmark.main([*options, "--only", "plain", "flower"]) == 1
    out = capsys.readouterr().out
    assert "| Flower's simulation: did not run | – |" in out
    assert "flower: not installed: no such version" in out
    kept = json.loads(results.read_text())
    assert kept["round_seconds"] == {"plain": [0.25, 0.25]}
    assert kept["setting"]["rounds"] == 3
    assert benchmark.main([*options, "--only", "plain"]) == 0


def test_the_last_message_of_a_failed_process_is_kept(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    benchmark = load("round_overhead")
    monkeypatch.setitem(benchmark.MODULES, "plain", "absent")
    bench = benchmark.Bench(tmp_path, tmp_path, ["plain"])
    assert bench.rounds("plain") == []
    assert "No module named round_harnesses.absent" in bench.failed["plain"]


def test_the_time_of_a_part_excludes_the_parts_within_it(load: Load, monkeypatch: pytest.MonkeyPatch):
    breakdown = load("round_harnesses.breakdown")
    clock = iter([0.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(breakdown, "now", lambda: next(clock))
    timers = breakdown.Timers()
    inner = timers.around("inner", lambda: 7)
    assert timers.around("outer", lambda: inner())() == 7
    assert timers.seconds == {"inner": 3.0, "outer": 17.0}


def test_every_function_that_is_timed_is_where_the_breakdown_looks(load: Load):
    breakdown = load("round_harnesses.breakdown")
    with breakdown.timed(breakdown.Timers(), {**breakdown.PARTS, "other": ("fftmoe.store:nothing",)}) as absent:
        pass
    assert absent == ["fftmoe.store:nothing"]
