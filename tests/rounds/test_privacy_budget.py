"""How a private run spends its budget, and what a crash costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fftmoe.errors import InputError
from fftmoe.methods.noise import normal
from fftmoe.setup.run import resume
from finished import Finished
from private_runs import NOISY, PrivateRecipe, RunPrivate, releases, with_chance


def test_a_run_ends_before_it_exceeds_its_budget(run_private: RunPrivate, private_recipe: PrivateRecipe, cli: Any):
    costs = [row["epsilon"] for row in run_private("whole", "fft-moe", NOISY, **{"federation.rounds": 5}).rows[1:]]
    budget = {**NOISY, "epsilon": (costs[2] + costs[3]) / 2}
    decayed = {"federation.rounds": 5, "federation.ema_decay": 0.5}
    finished = run_private("run", "fft-moe", budget, **decayed)
    found = finished.summary
    assert (found["rounds_completed"], found["privacy"]["releases"], found["privacy"]["stopped_early"]) == (3, 3, True)
    assert found["privacy"]["epsilon"] == costs[2] <= budget["epsilon"]
    assert set(found["accuracy_by_tier"]) == {"small", "large"}
    assert "ended early" in (finished.folder / "report.html").read_text()
    saved, kept = load_file(finished.folder / "adapter" / "adapter_model.safetensors").values(), finished.state
    bias = {name: t["head.bias"] for name, t in (("served", kept.average), ("last", kept.tensors))}
    assert [any(torch.equal(t, own) for t in saved) for own in bias.values()] == [True, False]
    assert cli("evaluate", finished.folder).status == 0


def test_calibrated_noise_suffices_for_all_rounds(run_private: RunPrivate):
    found = run_private(
        "run", "head-only", {"clip_norm": 0.5, "epsilon": 0.3, "delta": 0.001, "min_contributors": 2}
    ).summary
    assert 0.297 < found["privacy"]["epsilon"] <= 0.3
    assert found["privacy"]["releases"] == found["rounds_completed"] == 2


class Killed(Exception):
    """Stands in for a signal."""


def killed_in(round: int) -> Callable[[Sequence[int]], torch.Tensor]:
    """Noise that ends the process in this round before it is drawn; a head has two tensors."""
    draws: list[int] = []

    def draw(shape: Sequence[int]) -> torch.Tensor:
        draws.append(1)
        if len(draws) > 2 * (round - 1):
            raise Killed
        return normal(shape)

    return draw


@pytest.mark.parametrize("round", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_round_has_been_counted_before_its_noise_is_drawn(
    run_private: RunPrivate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round: int
):
    """The repeated round is counted again, so the ledger never counts less than was released."""
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(round))
        with pytest.raises(Killed):
            run_private("run", "head-only", NOISY, **{"federation.rounds": 3})
    assert releases(tmp_path / "run") == round
    resume(tmp_path / "run")
    whole = run_private("whole", "head-only", NOISY, **{"federation.rounds": 3})
    assert Finished(tmp_path / "run").summary["privacy"]["releases"] == 4
    assert Finished(tmp_path / "run").summary["privacy"]["epsilon"] > whole.summary["privacy"]["epsilon"]
    assert [r["round"] for r in Finished(tmp_path / "run").rows] == [0, 1, 2, 3]


def test_a_resumed_run_respects_the_budget(run_private: RunPrivate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    costs = [row["epsilon"] for row in run_private("whole", "head-only", NOISY, **{"federation.rounds": 3}).rows[1:]]
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(2))
        with pytest.raises(Killed):
            run_private("run", "head-only", {**NOISY, "epsilon": costs[2]}, **{"federation.rounds": 3})
    resume(tmp_path / "run")
    found = Finished(tmp_path / "run").summary
    assert (found["rounds_completed"], found["privacy"]["releases"], found["privacy"]["stopped_early"]) == (2, 3, True)


def test_a_run_without_its_privacy_ledger_cannot_be_resumed(
    run_private: RunPrivate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(2))
        with pytest.raises(Killed):
            run_private("run", "head-only", NOISY)
    (tmp_path / "run" / "checkpoints" / "privacy.json").unlink()
    with pytest.raises(InputError, match="does not say what this run has spent"):
        resume(tmp_path / "run")
