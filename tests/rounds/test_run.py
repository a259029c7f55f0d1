"""Whole runs through the command line on a tiny backbone, and the use of what they leave."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

import fftmoe
from fftmoe.backbones import load_tokenizer
from fftmoe.cli.plan_output import ranges
from fftmoe.config import parse_recipe
from fftmoe.data import tokenize_texts
from fftmoe.evaluate import accuracy
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Training, pack_update
from fftmoe.store import unpack_state
from reading import read_labelled_texts
from shared_fixtures import Cli, Outcome

SUMMARY_KEYS = {
    "schema_version",
    "method",
    "seed",
    "rounds_completed",
    "num_clients",
    "accuracy",
    "accuracy_by_round",
    "client_accuracy",
    "bytes_up",
    "bytes_down",
    "trainable_parameters",
    "expert_load_cv",
    "seconds",
    "peak_rss_mib",
    "clients_failed",
    "faults",
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """One finished run, shared by the tests of this file."""

    folder: Path
    outcome: Outcome

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def run(cli: Cli, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run("seed=1", …)` runs the tiny recipe with these overrides into a new folder."""

    def call(*overrides: str, flags: tuple[str, ...] = ()) -> Finished:
        folder = tmp_path_factory.mktemp("runs") / "run"
        sets = [part for override in overrides for part in ("--set", override)]
        outcome = cli("run", recipe_file, "--output", folder, *sets, *flags)
        assert outcome.status == 0, outcome.err
        return Finished(folder, outcome)

    return call


@pytest.fixture(scope="module")
def finished(run: Run) -> Finished:
    return run()


def timeless(value: Any) -> Any:
    """Remove seconds and memory at every depth."""
    if isinstance(value, dict):
        gone = ("seconds", "rss")
        return {key: timeless(item) for key, item in value.items() if not any(word in key for word in gone)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_a_run_leaves_its_folder_and_nothing_else(finished: Finished):
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "adapter",
        "checkpoints",
        "clients",
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "summary.json",
    ]
    adapter = {path.name for path in (finished.folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "labels.json"} <= adapter
    assert sorted(path.name for path in (finished.folder / "checkpoints").iterdir()) == [
        f"round-{round:06d}.{kind}" for round in (1, 2) for kind in ("json", "safetensors")
    ]
    assert not [path for path in finished.folder.rglob("*") if path.name.endswith(".tmp")]


def test_a_run_keeps_its_resolved_recipe(finished: Finished, recipe_values: dict[str, Any]):
    kept = parse_recipe(yaml.safe_load((finished.folder / "config.yaml").read_text()), "config.yaml")
    assert kept == parse_recipe(recipe_values, "tiny.yaml")


def test_a_summary_has_every_promised_key(finished: Finished):
    summary = finished.summary
    assert set(summary) >= SUMMARY_KEYS
    assert (summary["method"], summary["seed"], summary["num_clients"]) == ("fft-moe", 3, 7)
    assert summary["rounds_completed"] == 2
    assert set(summary["client_accuracy"]) == {"mean", "worst_decile"}
    assert set(summary["accuracy_by_tier"]) == {"small", "large"}
    assert summary["accuracy"] == summary["accuracy_by_tier"]["large"]
    assert list(summary["accuracy_by_round"]) == ["0", "1", "2"]
    assert summary["accuracy_by_round"]["2"] == summary["accuracy"]
    assert (summary["clients_failed"], summary["faults"]) == (0, {})
    assert 0 < summary["client_accuracy"]["worst_decile"] <= summary["client_accuracy"]["mean"] < 1
    assert summary["seconds"] > 0
    assert summary["peak_rss_mib"] > 10


def test_parameters_are_counted_by_their_shapes(finished: Finished):
    # 2 blocks of 5 experts of 2 * 4 * 20 and a router row of 20; a head of 3 * 20 and 3.
    assert finished.summary["trainable_parameters"] == 2 * 5 * (2 * 4 * 20 + 20) + 63
    assert finished.summary["trainable_parameters_by_tier"] == {"small": 2 * 2 * 180 + 63, "large": 2 * 5 * 180 + 63}


def test_metrics_have_a_line_per_round_from_round_0(finished: Finished):
    rows = finished.metrics
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert {str(row["round"]): row["accuracy"] for row in rows} == finished.summary["accuracy_by_round"]
    assert [row["bytes_down"] for row in rows] == sorted(row["bytes_down"] for row in rows)
    assert rows[0]["bytes_up"] == rows[0]["bytes_down"] == 0
    assert (rows[-1]["bytes_up"], rows[-1]["bytes_down"]) == (
        finished.summary["bytes_up"],
        finished.summary["bytes_down"],
    )


def test_a_checkpoint_holds_the_state_after_the_last_round(finished: Finished):
    state = unpack_state((finished.folder / "checkpoints" / "round-000002.safetensors").read_bytes())
    assert state.round == 2
    assert state.tensors["blocks.1.up"].shape == (5, 4, 20)
    for load in state.load.values():
        assert float(load.sum()) == pytest.approx(1.0)
    kept = {int(path.name) for path in (finished.folder / "clients").iterdir()}
    assert kept == set(state.preferences)  # whoever trained has told its preferences and kept its affinities
    assert 5 <= len(kept) <= 7


def test_the_command_line_shows_the_outcome_and_the_next_commands(finished: Finished):
    assert f"accuracy {finished.summary['accuracy']:.3f} on the whole test set" in finished.outcome.out
    assert "round   1  loss" in finished.outcome.out
    assert f"fftmoe predict {finished.folder} 'some text'" in finished.outcome.out
    assert finished.outcome.err == ""


def test_the_printed_python_loads_the_adapter(finished: Finished, data_folder: Path):
    printed = finished.outcome.out[finished.outcome.out.index("load it in Python:") :].splitlines()[1:5]
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in printed), names)
    assert isinstance(names["model"], PeftModel)
    assert measured(names["model"], names["backbone"], finished, data_folder) == finished.summary["accuracy"]


def test_a_peft_model_reproduces_the_accuracy(finished: Finished, backbone_folder: Path, data_folder: Path):
    backbone = fftmoe.load_backbone(str(backbone_folder), num_labels=3)
    model = PeftModel.from_pretrained(backbone, str(finished.folder / "adapter"))
    assert getattr(model.peft_config["default"], "top_k", None) == 2  # the largest tier's
    assert measured(model, backbone, finished, data_folder) == finished.summary["accuracy"]


def measured(model: Any, backbone: Any, finished: Finished, data_folder: Path) -> float:
    source = read_labelled_texts(str(data_folder))
    folder = backbone.config._name_or_path
    labels = json.loads((finished.folder / "adapter" / "labels.json").read_text())["labels"]
    assert tuple(labels) == source.label_names
    test = source.splits["test"]
    return accuracy(model.eval(), tokenize_texts(test.content, test.labels, load_tokenizer(folder), 13))


def test_the_page_shows_the_outcome_and_loads_nothing(finished: Finished):
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert f"{finished.summary['accuracy']:.3f}" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", page)
    assert "<script" not in page


def test_evaluate_gives_the_accuracy_of_the_run(cli: Cli, finished: Finished):
    outcome = cli("evaluate", finished.folder)
    assert outcome.status == 0
    measures = json.loads(outcome.out)
    assert measures["accuracy"] == finished.summary["accuracy"]
    assert measures["num_examples"] == 41
    assert set(measures["accuracy_by_label"]) == {"blue", "green", "red"}
    small = json.loads(cli("evaluate", finished.folder, "--top-k", 1).out)
    assert small["accuracy"] == finished.summary["accuracy_by_tier"]["small"]
    train = json.loads(cli("evaluate", finished.folder, "--split", "train").out)
    assert train["num_examples"] == 113


def test_evaluate_numbers_the_labels_of_other_data_by_their_names(cli: Cli, finished: Finished, tmp_path: Path):
    # Only two of the three labels, so that their numbers differ from the run's.
    rows = ["text,label", "ash red red,red", "bay green green,green", "red cod red,red"]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
    outcome = cli("evaluate", finished.folder, "--data", tmp_path)
    assert set(json.loads(outcome.out)["accuracy_by_label"]) == {"green", "red"}
    lines = cli("predict", finished.folder, *(row.partition(",")[0] for row in rows[1:])).out.splitlines()
    right = [json.loads(line)["label"] == row.partition(",")[2] for line, row in zip(lines, rows[1:], strict=True)]
    assert json.loads(outcome.out)["accuracy"] == pytest.approx(sum(right) / 3)


def test_predict_reads_arguments_a_file_or_standard_input(cli: Cli, finished: Finished, tmp_path: Path):
    texts = ["red ash red", "blue bay", "cod dew green green"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n\n")
    from_arguments = cli("predict", finished.folder, *texts)
    assert from_arguments.status == 0
    rows = [json.loads(line) for line in from_arguments.out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert all(row["label"] in ("blue", "green", "red") and 1 / 3 <= row["score"] <= 1 for row in rows)
    assert cli("predict", finished.folder, "--file", tmp_path / "texts.txt").out == from_arguments.out
    assert cli("predict", finished.folder, stdin="\n".join(texts)).out == from_arguments.out


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run: Run, finished: Finished):
    again, other = run(), run("seed=4")
    assert timeless(again.summary) == timeless(finished.summary)
    assert timeless(again.metrics) == timeless(finished.metrics)
    assert again.metrics[1]["train_loss"] != other.metrics[1]["train_loss"]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/round-000002.safetensors"):
        assert (again.folder / name).read_bytes() == (finished.folder / name).read_bytes()
        assert (again.folder / name).read_bytes() != (other.folder / name).read_bytes()


def test_one_worker_and_two_give_the_same_bytes(run: Run):
    """Compare two worker processes, each with its own model, with this process and its single model."""
    settings = (
        "adapter.router=shared+personal",
        "federation.server_optimizer=adam",
        "federation.server_learning_rate=0.1",
    )
    one, two = run(*settings), run(*settings, flags=("--workers", "2"))
    assert timeless(one.metrics) == timeless(two.metrics)
    assert timeless(one.summary) == timeless(two.summary)
    names = [path.relative_to(one.folder) for path in sorted(one.folder.rglob("*.safetensors"))]
    assert len(names) > 5
    assert names == [path.relative_to(two.folder) for path in sorted(two.folder.rglob("*.safetensors"))]
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


def test_local_training_does_not_depend_on_the_federation(run: Run, finished: Finished):
    other = run("federation.server_learning_rate=0.25", "federation.server_optimizer=momentum")
    assert other.metrics[1]["accuracy"] != finished.metrics[2]["accuracy"]
    for key in ("local_only_accuracy", "local_only_client_accuracy"):
        assert other.summary[key] == finished.summary[key]


def test_evaluating_less_often_does_not_change_training(run: Run, finished: Finished):
    rarely = run("evaluation.every=5", "evaluation.max_examples=7", "evaluation.local_only=false")
    assert [row["accuracy"] is None for row in rarely.metrics] == [False, True, False]
    assert rarely.summary["accuracy"] == finished.summary["accuracy"]
    assert not {"local_only_accuracy", "local_only_client_accuracy"} & rarely.summary.keys()
    name = "adapter/adapter_model.safetensors"
    assert (rarely.folder / name).read_bytes() == (finished.folder / name).read_bytes()


def test_a_run_with_tensorboard_leaves_its_events(run: Run):
    folder = run("trackers=[tensorboard]", "evaluation.local_only=false").folder / "trackers"
    assert [path.name for path in folder.iterdir() if path.name.startswith("events.")]


@pytest.mark.parametrize("how", ["natural", "blocks", "epochs", "limits", "native"])
def test_other_kinds_of_run_finish(run: Run, recipe_values: dict[str, Any], how: str):
    overrides = {
        "natural": ["partition={kind: natural, by: author}", "federation.clients_per_round=4"],
        "blocks": ["budgets.small.blocks=last-1", "adapter.blocks=all"],
        "epochs": ["federation.local_steps=null", "federation.local_epochs=1"],
        "limits": [],
        "native": ["backbone.pooling=native", "head={kind: averaged, learning_rate: 0.5, optimizer: adamw}"],
    }[how]
    if how == "limits":
        # 2 blocks * 180 parameters * 4 bytes * 4 copies = 5760 bytes an expert; three fit. Plenty of compute.
        tier = f"{{name: small, fraction: 0.6, memory_mib: {3.5 * 5760 / 2**20}, gflops: 5}}"
        overrides = [f"budgets=[{tier}, {{name: large, fraction: 0.4, top_k: 2, experts: 5}}]"]
    finished = run(*overrides, "evaluation.local_only=false")
    assert finished.summary["rounds_completed"] == 2
    if how == "limits":
        assert finished.summary["trainable_parameters_by_tier"]["small"] == 2 * 3 * 180 + 63


def test_the_python_call_returns_the_contents_of_the_folder(recipe_file: Path, finished: Finished, tmp_path: Path):
    result = fftmoe.run(recipe_file, output=tmp_path / "run", overrides=["evaluation.local_only=false"])
    assert result.folder == tmp_path / "run"
    assert result.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.summary["accuracy"] == finished.summary["accuracy"]


def test_a_run_goes_to_runs_and_its_name_by_default(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert cli("run", recipe_file, "--set", "evaluation.local_only=false").status == 0
    assert (tmp_path / "runs" / "tiny" / "summary.json").is_file()


# One client a tier, so that the forecast of a tier is that of its only client, to the byte.
THREE_TIERS = [
    "partition.num_clients=3",
    "federation.clients_per_round=3",
    "partition.kind=iid",
    "partition.alpha=null",
]
THREE_TIERS += [
    f"budgets=[{', '.join(f'{{name: t{e}, fraction: 0.3333333, top_k: 1, experts: {e}}}' for e in (1, 2, 5))}]"
]


def test_a_plan_equals_the_cost_of_the_first_round(run: Run, cli: Cli, recipe_file: Path):
    sets = [part for override in THREE_TIERS for part in ("--set", override)]
    planned = json.loads(cli("plan", recipe_file, "--json", *sets).out)
    costs = planned["tiers"]
    assert [tier["budget"]["name"] for tier in costs] == ["t1", "t2", "t5"]
    first = run(*THREE_TIERS, "federation.rounds=1", "evaluation.local_only=false").metrics[1]
    assert first["bytes_down"] == sum(tier["bytes_down"] for tier in costs)
    # At most: every resident expert may have been trained, and numbers may be as long as they get.
    assert 0.98 * sum(tier["bytes_up"] for tier in costs) <= first["bytes_up"] <= sum(t["bytes_up"] for t in costs)
    assert planned["num_examples"] == [38, 38, 37]
    assert {len(held["1"]) for held in planned["experts"].values()} == {1, 2, 5}


def test_no_round_uploads_more_than_planned(run: Run, cli: Cli, recipe_file: Path):
    """Preferences grow over the rounds, because clients rank all experts that they know."""
    sets = [part for override in THREE_TIERS for part in ("--set", override)]
    most = sum(tier["bytes_up"] for tier in json.loads(cli("plan", recipe_file, "--json", *sets).out)["tiers"])
    rows = run(*THREE_TIERS, "federation.rounds=5", "evaluation.local_only=false").metrics
    assert max(after["bytes_up"] - before["bytes_up"] for before, after in pairwise(rows)) <= most


@pytest.mark.parametrize("upload", ["bfloat16", "int8"])
def test_rounded_uploads_cost_what_was_planned_and_learn_the_same(run: Run, cli: Cli, recipe_file: Path, upload: str):
    settings = (*THREE_TIERS, "evaluation.local_only=false", f"federation.upload={upload}", "federation.rounds=3")
    sets = [part for override in settings for part in ("--set", override)]
    most = sum(tier["bytes_up"] for tier in json.loads(cli("plan", recipe_file, "--json", *sets).out)["tiers"])
    rounded, workers = run(*settings), run(*settings, flags=("--workers", "2"))
    plain = run(*settings, "federation.upload=float32")
    spent = [after["bytes_up"] - before["bytes_up"] for before, after in pairwise(rounded.metrics)]
    assert max(spent) <= most
    assert rounded.summary["bytes_up"] < plain.summary["bytes_up"]
    assert timeless(rounded.summary) == timeless(workers.summary)
    assert rounded.metrics[-1]["train_loss"] == pytest.approx(plain.metrics[-1]["train_loss"], rel=0.05)
    assert rounded.metrics[-1]["train_loss"] != plain.metrics[-1]["train_loss"]
    kept = [name for path in rounded.folder.glob("clients/*/*") for name in safetensors.torch.load(path.read_bytes())]
    assert any(name.startswith("feedback/") for name in kept)


@given(st.lists(st.floats(1e-9, 1, exclude_max=True), min_size=4, max_size=4), st.floats(1e-9, 1e9))
@settings(deadline=None)
def test_an_update_is_never_longer_than_planned(shares: list[float], loss: float):
    tensors = {"blocks.1.up": torch.zeros(4, 3, 7)}
    held, pool = {1: (0, 1, 2, 3)}, {1: tuple(range(13))}
    training = Training(batch_size=5, learning_rate=0.01, head_learning_rate=0.5, local_steps=1)
    plan = ClientPlan(12, 345, 6, Budget("t", 1, 4, (1,)), held, training)
    method = FftMoe({345: plan.budget}, ExpertShape(dim=7, expert_dim=3), num_experts=13)
    real = ClientUpdate(12, 345, 6789, tensors, held, {1: tuple(shares)}, pool, {"loss": loss})
    assert len(pack_update(real)) <= len(pack_update(method.widest_update(plan, tensors)))


def test_a_plan_writes_nothing_and_reads_well(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    many = ("--set", "partition={kind: iid, num_clients: 23}")
    outcome = cli("plan", recipe_file, *many)
    assert (outcome.status, outcome.err) == (0, "")
    for word in ("small", "large", "2 rounds of 5 clients", "and 3 more clients"):
        assert word in outcome.out
    client = re.compile(r"^client\s+\d+ .*\b[45] examples .*block 1: ", re.MULTILINE)
    assert len(client.findall(outcome.out)) == 20
    assert len(client.findall(cli("plan", recipe_file, *many, "--clients").out)) == 23
    assert list(tmp_path.iterdir()) == []


CLOSED = "head={kind: closed-form}"


def planned(cli: Cli, recipe_file: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    """Return the output of `plan` for programs and for people."""
    sets = [part for override in overrides for part in ("--set", override)]
    outcome, shown = cli("plan", recipe_file, "--json", *sets), cli("plan", recipe_file, *sets)
    assert (outcome.status, shown.status) == (0, 0), outcome.err + shown.err
    return json.loads(outcome.out), shown.out


def test_the_statistics_of_a_closed_form_head_are_planned_to_the_byte(run: Run, cli: Cli, recipe_file: Path):
    settings = ("head={kind: closed-form, update: frozen}", "evaluation.local_only=false", "federation.rounds=1")
    one = planned(cli, recipe_file, "method=centralized", *settings)[0]["sums"]
    first = run("method=centralized", *settings).metrics[0]
    assert (first["bytes_down"], first["bytes_up"]) == (one["bytes_first"], one["bytes_up"])
    seven = planned(cli, recipe_file, *settings)[0]["sums"]
    first = run(*settings).metrics[0]
    for key, planned_key in (("bytes_down", "bytes_first"), ("bytes_up", "bytes_up")):
        assert abs(first[key] - 7 * seven[planned_key]) < 7 * 32  # seeds and numbers of examples are of unlike lengths
    # In float32 the triangle of 21 x 21, and 21 x 3.
    assert 4 * (21 * 22 // 2 + 21 * 3) < seven["bytes_up"] < 4 * (21 * 22 // 2 + 21 * 3) + 512


@pytest.mark.parametrize("head", ["update: frozen", "update: trained, learning_rate: 0.01", "every: 1", "every: 2"])
@pytest.mark.parametrize("rounds", [2, 3])
def test_a_plan_counts_how_often_a_head_is_computed(
    run: Run, cli: Cli, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, head: str, rounds: int
):
    module = sys.modules["fftmoe.rounds.closed_form"]
    solve, solved = module.solve_head, []

    def recorded(state: Any, *arguments: Any) -> Any:
        solved.append(state.round)
        return solve(state, *arguments)

    monkeypatch.setattr(module, "solve_head", recorded)
    settings = (f"head={{kind: closed-form, {head}}}", f"federation.rounds={rounds}", "evaluation.local_only=false")
    sums = planned(cli, recipe_file, *settings)[0]["sums"]
    run(*settings)
    assert sums["times"] == len(solved)
    assert sums["every"] == (int(head[-1]) if head.startswith("every") else None)


def test_a_plan_says_when_statistics_are_sent(cli: Cli, recipe_file: Path):
    known, shown = planned(cli, recipe_file, CLOSED)
    size = f"{known['sums']['bytes_up'] / 1024:.1f} KiB"
    assert "computes the head from feature statistics: for them, every client also gets " in shown
    assert f"and sends at most {size}, 3 times: before the first round, then after every round.\n" in shown
    shown = planned(cli, recipe_file, "head={kind: closed-form, every: 2}")[1]
    assert "2 times: before the first round, then after every 2 rounds and after the last.\n" in shown
    shown = planned(cli, recipe_file, "head={kind: closed-form, update: frozen}")[1]
    assert ", once, before the first round.\n" in shown
    known, shown = planned(cli, recipe_file)
    assert known["sums"] is None
    assert "statistics" not in shown


@pytest.mark.parametrize("method", ["hetlora", "fedit"])
def test_a_plan_of_lora_shows_ranks_and_no_experts(cli: Cli, recipe_file: Path, method: str):
    known, shown = planned(cli, recipe_file, f"method={method}")
    budgets = [tier["budget"]["rank"] for tier in known["tiers"]]
    ranks = [tier["rank"] for tier in known["tiers"]]
    assert budgets[0] < budgets[1]
    # FedIT knows one rank, the smallest.
    assert ranks == (budgets if method == "hetlora" else [budgets[0]] * 2)
    for name, rank in zip(("small", "large"), ranks, strict=True):
        assert re.search(rf"^ *{name} +\d+ +rank {rank} ", shown, re.MULTILINE)
    assert "uses: LoRA's rank.\n" in shown
    assert "expert" not in shown
    assert len(re.findall(r"^client +\d+  (?:small|large) +\d+ examples$", shown, re.MULTILINE)) == 7


def test_a_plan_of_head_only_shows_no_experts(cli: Cli, recipe_file: Path):
    known, shown = planned(cli, recipe_file, "method=head-only")
    assert [tier["rank"] for tier in known["tiers"]] == [None, None]
    assert len(re.findall(r"^ *(?:small|large) +\d+ +head ", shown, re.MULTILINE)) == 2
    assert "expert" not in shown
    assert "uses:" not in shown


def test_a_plan_of_experts_shows_how_many_are_used(cli: Cli, recipe_file: Path):
    known, shown = planned(cli, recipe_file)
    assert [tier["rank"] for tier in known["tiers"]] == [None, None]
    assert re.search(r"^ *small +\d+ +1 of 2 ", shown, re.MULTILINE)
    assert "uses: experts a token activates" in shown


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((4,), "4"), ((0, 1, 2), "0-2"), ((0, 1, 3, 7, 8), "0-1 3 7-8")]
)
def test_ranges_are_for_people(numbers: tuple[int, ...], text: str):
    assert ranges(numbers) == text


@pytest.mark.parametrize("num_bytes", [7_000, 25_000])
def test_a_disk_that_fills_up_in_a_run_ends_it_with_one_line(
    cli: Cli,
    recipe_file: Path,
    finished: Finished,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    num_bytes: int,
):
    """The first limit refuses the checkpoint, the second the report."""
    with full_disk(num_bytes):
        outcome = cli("run", recipe_file, "--output", tmp_path / "run", "--set", "evaluation.local_only=false")
    assert outcome.status == 2
    assert outcome.err.startswith("fftmoe: cannot write ")
    assert "File too large; free space or name another place with --output; " in outcome.err
    assert outcome.err.endswith(f"; then go on: fftmoe resume {tmp_path / 'run'}\n")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".tmp")]


def test_an_interrupted_run_ends_with_130_and_a_whole_checkpoint(recipe_file: Path, tmp_path: Path):
    main = "import signal, fftmoe.cli.app as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    sets = ["--set", "federation.rounds=1000000", "--set", "trackers=[]", "--output", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-c", main, "run", str(recipe_file), *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen = take_until(process.stdout, "round   2")
        assert seen, process.communicate(timeout=60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = tmp_path / "run"
    assert err == f"fftmoe: interrupted; to continue after its last whole round: fftmoe resume {folder}\n"
    state = unpack_state(max((tmp_path / "run" / "checkpoints").glob("*.safetensors")).read_bytes())
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert state.round >= 1
    assert json.loads(rows[-1])["round"] in (state.round, state.round + 1)
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    assert not (tmp_path / "run" / "summary.json").exists()


def take_until(lines: Iterator[str], start: str) -> bool:
    return any(line.startswith(start) for line in lines)


def test_a_run_saves_the_moving_average_and_trains_without_it(run: Run):
    settings = ("evaluation.local_only=false", "federation.rounds=2")
    plain, averaged = (run(*settings, f"federation.ema_decay={decay}") for decay in (0, 0.5))
    # The first round is its own average, and the second trains from it.
    assert [row["train_loss"] for row in averaged.metrics[1:]] == [row["train_loss"] for row in plain.metrics[1:]]
    assert averaged.metrics[1]["accuracy"] == plain.metrics[1]["accuracy"]
    first = run("evaluation.local_only=false", "federation.rounds=1")
    states = [
        unpack_state(max((r.folder / "checkpoints").glob("*.safetensors")).read_bytes())
        for r in (first, plain, averaged)
    ]
    one, two, kept = (state.tensors["head.weight"].double() for state in states)
    # Weights 1/3 and 2/3; kept in float32.
    torch.testing.assert_close(kept, (one + 2 * two) / 3, rtol=1e-5, atol=1e-7)
    assert not states[2].average


def test_a_sample_of_clients_can_train_alone(finished: Finished, run: Run):
    sampled = run("evaluation.local_only_clients=2")
    assert sampled.summary["local_only_accuracy"]["num_clients"] == 2
    assert finished.summary["local_only_accuracy"]["num_clients"] == finished.summary["num_clients"]
    # The federation itself is the same.
    assert sampled.summary["accuracy"] == finished.summary["accuracy"]
