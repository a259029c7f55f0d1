"""A run keeps the model of its best round, and ends when its model does not become better any more."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.rounds.patience import Stopper, idle_notes
from fftmoe.rounds.validation import VALIDATION_ERROR, Validation
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.finished import load_client, load_federation, load_run
from fftmoe.setup.run import resume, run
from fftmoe.store import BAR, Ranking, RunFolder
from fftmoe.tasks import CountedShare
from five_clients import AVERAGED
from interrupting import Killed, interrupt, results, without_clocks
from run_fixtures import FiveRecipe
from shared_fixtures import Cli

KEEP = {"data.validation": 0.3, "evaluation.keep": "best", "federation.rounds": 6, "federation.learning_rate": 0.02}


@contextmanager
def validated_as(*values: float, error: float = 0.0) -> Iterator[None]:
    """While it is open, the state after round t validates as `values[t]`; the clients are asked all the same."""
    original = Validation.__call__

    def stated(self: Validation, state: Any) -> dict[str, float]:
        return {name: error if name == VALIDATION_ERROR else values[state.round] for name in original(self, state)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "__call__", stated)
        yield


def kept_tensors(folder: Path, name: str = "adapter") -> bytes:
    return (folder / name / "adapter_model.safetensors").read_bytes()


def checkpoints(folder: Path) -> list[int]:
    return RunFolder(folder).checkpoints.rounds()


@pytest.mark.parametrize(
    ("values", "best", "kept"),
    [
        ((0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6), 2, [6, 5, 4, 2]),
        ((0.9, 0.2, 0.8, 0.3, 0.4, 0.5, 0.6), 0, [6, 5, 4, 0]),
        ((0.1, 0.9, 0.9, 0.9, 0.4, 0.5, 0.6), 3, [6, 5, 4, 3]),
        ((0.1, float("nan"), 0.3, float("nan"), 0.2, 0.1, float("nan")), 2, [6, 5, 4, 2]),
        ((0.1, 0.2, 0.3, 0.4, 0.9, 0.5, 0.6), 4, [6, 5, 4, 3]),
    ],
)
def test_the_best_round_is_kept_and_the_last_one_lies_beside_it(
    five_recipe: FiveRecipe, tmp_path: Path, values: tuple[float, ...], best: int, kept: list[int]
):
    folder, recipe = tmp_path / "run", parse_recipe(five_recipe("fft-moe", AVERAGED, **KEEP), "tiny")
    with validated_as(*values):
        summary = run(recipe, folder).summary
    assert summary["best_round"] == best
    assert checkpoints(folder) == kept
    assert summary["validation_accuracy"] == values[best]
    assert (summary["last"]["round"], summary["rounds_completed"]) == (6, 6)
    assert summary["last"]["accuracy"] == summary["accuracy_by_round"]["6"]
    for round, name in ((best, "kept"), (6, "last")):
        state, _ = RunFolder(folder).checkpoints.load(round)
        model = load_run(folder, exact=True, round=name).model
        found = {n: p for n, p in model.named_parameters() if "classifier" in n and "weight" in n and "modules" in n}
        assert any(torch.equal(p.cpu(), state.tensors["head.weight"]) for p in found.values())
    assert evaluate_run(folder)["accuracy"] == pytest.approx(summary["accuracy"])
    assert evaluate_run(folder, round="last")["accuracy"] == pytest.approx(summary["last"]["accuracy"])


@pytest.mark.parametrize(
    ("values", "best", "kept"),
    [
        ((0.5, 0.62, 0.6, 0.55, 0.59, 0.56, 0.57), 4, [6, 5, 4, 2]),
        ((0.5, 0.62, 0.6, 0.59, 0.58, 0.57, 0.56), 3, [6, 5, 4, 3]),  # each a little worse than the one before
        ((0.61, 0.5, 0.6, 0.5, 0.5, 0.9, 0.5), 5, [6, 5, 4, 0]),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.51), 6, [6, 5, 4, 3]),
        ((0.6, 0.59, 0.58, 0.59, 0.58, 0.59, 0.58), 0, [6, 5, 4, 0]),  # none is as good as the model before training
        ((0.6, 0.59, 0.58, 0.6, 0.62, 0.59, 0.58), 4, [6, 5, 4, 3]),
    ],
)
def test_a_later_round_is_kept_that_is_no_worse_beyond_chance(
    five_recipe: FiveRecipe, tmp_path: Path, values: tuple[float, ...], best: int, kept: list[int]
):
    """Of the checkpoints before the last three the one stays that would have been kept then."""
    folder = tmp_path / "run"
    with validated_as(*values, error=0.03):
        summary = run(parse_recipe(five_recipe("fft-moe", AVERAGED, **KEEP), "tiny"), folder).summary
    assert (summary["best_round"], checkpoints(folder)) == (best, kept)


def test_the_standard_error_is_that_of_a_share_of_the_rows(five_recipe: FiveRecipe, tmp_path: Path):
    settings = {**KEEP, "federation.rounds": 1}
    done = run(parse_recipe(five_recipe("fft-moe", AVERAGED, **settings), "tiny"), tmp_path / "run")
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        value, error = row["validation_accuracy"], row["validation_standard_error"]
        shares = (CountedShare(np.asarray(value), np.asarray(n)) for n in range(1, 1000))
        number = next(s.items for s in shares if s.standard_error(1000) == pytest.approx(error, rel=1e-6))
        assert value * number == pytest.approx(round(value * number), rel=1e-6)  # sums travel in float32
    best = max(rows, key=lambda row: row["validation_accuracy"])
    within_error = best["validation_accuracy"] - best["validation_standard_error"]
    assert rows[-1]["bar_to_keep"] == max(within_error, rows[0]["validation_accuracy"])


def test_the_last_round_may_be_the_best(five_recipe: FiveRecipe, tmp_path: Path):
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, **{**KEEP, "federation.rounds": 2}), "tiny")
    with validated_as(0.1, 0.2, 0.3):
        done = run(recipe, tmp_path / "run")
    assert done.summary["best_round"] == 2
    assert "last" not in done.summary
    assert not (done.folder / "adapter-last").exists()
    assert evaluate_run(done.folder, round="last") == evaluate_run(done.folder)


LUCKY = (0.1, 0.9, 0.2, 0.88, 0.4, 0.5, 0.6)


@pytest.mark.parametrize(
    "after", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), 5]
)
def test_a_resumed_run_keeps_the_same_round(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, **KEEP), "tiny")
    with validated_as(*LUCKY, error=0.03):
        run(recipe, tmp_path / "whole")
        with monkeypatch.context() as patch:
            interrupt(patch, "in training", after + 1)
            with pytest.raises(Killed):
                run(recipe, tmp_path / "cut")
        resume(tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert kept_tensors(tmp_path / "cut", "adapter-last") == kept_tensors(tmp_path / "whole", "adapter-last")
    assert without_clocks(tmp_path / "cut") == without_clocks(tmp_path / "whole")


def test_whichever_newest_checkpoints_are_damaged_the_best_round_before_them_is_there(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, values = parse_recipe(five_recipe("fft-moe", AVERAGED, **KEEP), "tiny"), (0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6)
    with validated_as(*values):
        run(recipe, tmp_path / "whole")
        with monkeypatch.context() as patch:
            interrupt(patch, "in training", 6)
            with pytest.raises(Killed):
                run(recipe, tmp_path / "cut")
        assert checkpoints(tmp_path / "cut") == [5, 4, 3, 1]
        for round in (5, 4):
            (tmp_path / "cut" / "checkpoints" / f"round-{round:06d}.safetensors").write_bytes(b"damaged")
        resume(tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_best_round_that_is_damaged_is_not_loaded(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, **KEEP), "tiny")
    with validated_as(0.1, 0.9, 0.2, 0.8, 0.4, 0.5, 0.6):
        with monkeypatch.context() as patch:
            interrupt(patch, "in training", 5)
            with pytest.raises(Killed):
                run(recipe, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "round-000001.safetensors").write_bytes(b"damaged")
        said: list[str] = []
        monkeypatch.setattr("fftmoe.report.progress.Progress.say", lambda self, text: said.append(text))
        assert resume(tmp_path / "run").summary["best_round"] in (3, 6)
    assert any("a better round cannot be kept, because its checkpoint is damaged" in line for line in said)


@pytest.mark.parametrize(("patience", "ends"), [(1, 3), (2, 4), (4, 6)])
def test_a_run_ends_when_its_model_has_not_improved_for_so_long(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, ends: int
):
    settings = {**KEEP, "evaluation.keep": "last", "federation.patience": patience}
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, **settings), "tiny")
    with validated_as(0.1, 0.2, 0.6, 0.3, 0.6, 0.5, 0.4):
        summary = run(recipe, tmp_path / "whole").summary
        with monkeypatch.context() as patch:
            interrupt(patch, "before the checkpoint", 3)
            with pytest.raises(Killed):
                run(recipe, tmp_path / "cut")
        resume(tmp_path / "cut")
    assert (summary["rounds_completed"], summary["stopped_early"]) == (ends, ends < 6)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert without_clocks(tmp_path / "cut") == without_clocks(tmp_path / "whole")
    with pytest.raises(InputError, match="has finished"):
        resume(tmp_path / "whole")


@given(most=st.integers(1, 7), every=st.integers(1, 7), rounds=st.integers(1, 23))
def test_patience_that_can_end_no_run_is_said(most: int, every: int, rounds: int):
    stopper = Stopper(Ranking("accuracy", True, VALIDATION_ERROR), most)
    rows = [{"round": 0, "accuracy": 0.5, VALIDATION_ERROR: 0.0}]
    ended = False
    for round in range(1, rounds):  # a run that becomes worse; after the last round it ends anyway
        rows.append({"round": round, **({"accuracy": 0.4, VALIDATION_ERROR: 0.0} if round % every == 0 else {})})
        ended = ended or stopper(rows) is not None
    assert bool(idle_notes(most, every, rounds)) == (not ended)
    assert not idle_notes(None, every, rounds)


def test_plan_and_the_summary_say_that_patience_has_no_effect(five_recipe: FiveRecipe, tmp_path: Path, cli: Cli):
    settings = {**KEEP, "federation.rounds": 2, "federation.patience": 2}
    recipe = parse_recipe(five_recipe("fft-moe", AVERAGED, **settings), "tiny")
    notes = run(recipe, tmp_path / "run").summary["notes"]
    said = "federation.patience=2 has no effect: 2 measurements, each 1 round after the one before, take as long as"
    assert [note for note in notes if note.startswith(said)]
    assert said in " ".join(cli("plan", tmp_path / "run" / "config.yaml").out.split())


def test_clients_own_models_are_those_of_the_last_round(five_recipe: FiveRecipe, tmp_path: Path, cli: Cli):
    folder = tmp_path / "run"
    with validated_as(0.9, 0.2, 0.3):
        run(parse_recipe(five_recipe("fft-moe", AVERAGED, **{**KEEP, "federation.rounds": 2}), "tiny"), folder)
    with pytest.raises(InputError, match="add --round last"):
        load_client(folder, 1)
    assert load_client(folder, 1, round="last").experts
    assert [load_federation(folder, round=name).state.round for name in ("kept", "last")] == [0, 2]
    asked = ("predict", folder, "ash bay", "--scores")
    kept, last = (cli(*asked, "--round", round) for round in ("kept", "last"))
    assert (kept.status, last.status) == (0, 0)
    assert json.loads(kept.out)["scores"] != json.loads(last.out)["scores"]
    assert cli(*asked, "--round", "best").status == 2
    for name, of in (("kept", "adapter"), ("last", "adapter-last")):
        done = cli("export", folder, "--to", "peft", "--output", tmp_path / name, "--round", name)
        assert done.status == 0, done.err
        assert (tmp_path / name / "bound.json").read_bytes() == (folder / of / "bound.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"data.validation": "off"},
            "evaluation.keep=best compares rounds .*; set data.validation, ",
        ),
        ({"evaluation.personal": True}, "set evaluation.keep=last, or evaluation.personal=false"),
        ({"method": "fedsa-lora"}, "clients' own models exist only for the last one"),
    ],
)
def test_what_cannot_be_kept_is_refused(five_recipe: FiveRecipe, changes: dict[str, Any], reason: str):
    with pytest.raises(InputError, match=reason):
        parse_recipe(five_recipe("fft-moe", AVERAGED, **{**KEEP, **changes}), "tiny")


def test_the_smaller_value_is_better_where_the_metric_is_an_error():
    rows = [{"round": t, "validation_loss": value} for t, value in enumerate((3.0, 1.0, None, 1.0, 2.0))]
    smaller, larger = (Ranking("validation_loss", higher) for higher in (False, True))
    assert smaller.ranked(rows) == [3, 1, 4, 0]
    assert larger.ranked(rows) == [0, 4, 3, 1]
    assert (smaller.best(rows), larger.best(rows)) == (1, 0)
    assert (smaller.without_gain(rows), larger.without_gain(rows)) == (3, 4)
    assert smaller.without_gain(rows[2:3]) == 0


@given(st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=14), st.integers(0, 6), st.booleans())
def test_what_stays_is_what_a_run_keeps_from_whichever_checkpoint_it_goes_on(
    values: list[int | None], error: int, higher: bool
):
    """As `Checkpoints` removes them: the last three rounds stay, and the first in the order of the others."""
    ranking = Ranking("value", higher, "error")
    rows: list[dict[str, Any]] = []
    there: list[dict[str, Any]] = []
    for round, value in enumerate(values):
        row = {"round": round, "value": value, "error": error}
        rows.append({**row, BAR: ranking.bar((*rows, row))})
        there.append(rows[-1])
        first = ranking.ranked(there[:-3])[:1]
        there = [row for row in there if row["round"] in first or row in there[-3:]]
        for last in range(max(0, round - 2), round + 1):
            before = [row for row in rows if row["round"] <= last]
            assert ranking.ranked(row for row in there if row["round"] <= last)[:1] == ranking.ranked(before)[:1]
        (kept, *_) = ranking.ranked(rows) or [None]
        if kept is not None:
            measured = [row["value"] for row in rows if row["value"] is not None]
            best = max(measured) if higher else min(measured)
            assert abs(rows[kept]["value"] - best) <= error
            start = next((value for value in values[:1] if value is not None), rows[kept]["value"])
            assert rows[kept]["value"] >= start if higher else rows[kept]["value"] <= start
