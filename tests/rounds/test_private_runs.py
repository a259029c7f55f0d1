"""Private runs: what the server keeps, which updates and plans are refused, and the noise."""

import itertools
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fftmoe.client.screening import screen_plan
from fftmoe.config import parse_recipe
from fftmoe.engines.base import Fault, Group, Quota, Reply
from fftmoe.errors import InputError, RunError
from fftmoe.methods.private import joint_norm
from fftmoe.records import Training, pack_plan, unpack_plan, unpack_update
from fftmoe.report.progress import Progress
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.run import run
from fftmoe.setup.site import make_agreement
from fftmoe.store import pack_state, unpack_state
from finished import Finished
from private_runs import NOISY, SUMS, PrivateRecipe, RunPrivate, Unreliable, Wrapped, releases, spent, with_chance
from spoiling import of, say
from tampering import record


@pytest.mark.parametrize(
    ("method", "privacy"),
    [
        *((method, privacy) for method in ("fft-moe", "head-only") for privacy in (SUMS, NOISY)),
        ("fedsa-lora", SUMS),
        *(pytest.param(m, p, marks=pytest.mark.slow) for m in ("fedit", "ffa-lora") for p in (SUMS, NOISY)),
    ],
)
def test_a_private_run_keeps_nothing_of_single_clients(run_private: RunPrivate, method: str, privacy: dict[str, Any]):
    finished = run_private("run", method, privacy)
    for row in finished.rows:
        known = {"round", "accuracy", "accuracy_interval", "experts_released", "epsilon", "releases", "metric"}
        costs = {"seconds", "client_seconds", "by_tier", "bytes_down", "bytes_up", "phase_seconds"}
        assert row.keys() <= (known if privacy is NOISY else known | costs)
        assert row.get("by_tier", {}).keys() <= {"small", "large"}
        assert isinstance(row.get("epsilon", 0.0), float)
    assert not {"train_loss", "expert_load_cv"} & finished.summary.keys()
    # Of fewer than twenty clients, the worst tenth is one of them.
    spreads = [value for value in finished.summary.values() if isinstance(value, dict) and "mean" in value]
    assert not any("worst_decile" in value for value in spreads)
    kept = finished.state
    assert kept.preferences == {}
    for load in kept.load.values():
        assert torch.equal(load, torch.full_like(load, 1 / 5))
    assert b"loss" not in pack_state(kept)
    assert finished.summary.get("faults", {}) == {}
    if privacy is NOISY:
        spent = finished.summary["privacy"]
        assert spent["releases"] == 2
        assert spent["epsilon"] == finished.rows[-1]["epsilon"] > finished.rows[-2]["epsilon"] > 0
        assert not spent["stopped_early"]
        page = (finished.folder / "report.html").read_text()
        assert f"{spent['epsilon']:.3f} at delta 0.001" in page
    else:
        assert finished.summary["privacy"] == SUMS


@pytest.mark.parametrize("upload", ["float32", "int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_all_clients_of_a_tier_send_as_many_bytes(run_private: RunPrivate, upload: str):
    """The sizes do not depend on routing; round numbers and client ids have one digit."""
    finished = run_private("run", "fft-moe", SUMS, **{"federation.upload": upload, "federation.rounds": 4})
    each: dict[str, set[float]] = {}
    before: dict[str, dict[str, float]] = {}
    for row in finished.rows:
        for tier, now in row["by_tier"].items():
            old = before.get(tier, {"client_rounds": 0, "bytes_up": 0})
            if new := now["client_rounds"] - old["client_rounds"]:
                each.setdefault(tier, set()).add((now["bytes_up"] - old["bytes_up"]) / new)
        before = row["by_tier"]
    assert {tier: len(sizes) for tier, sizes in each.items()} == {"small": 1, "large": 1}


def test_tensors_with_too_few_holders_do_not_change(run_private: RunPrivate, private_recipe: PrivateRecipe):
    """They stay equal to the bit; one of the three clients in the round holds expert 1 of block 2."""
    one = {"federation.rounds": 1}
    experiment = compose(parse_recipe(private_recipe("fft-moe", SUMS, **one), "tiny"))
    before, after = experiment.method.init(experiment.model), run_private("run", "fft-moe", SUMS, **one).state
    held = experiment.method.assign(before, choose_cohort(5, 3, 3, 1)).values()
    few = {block: [sum(m in own.get(block, ()) for own in held) < 2 for m in range(5)] for block in (1, 2)}
    assert few[2] == [False, True, False, False, False]
    for block in (1, 2):
        for name in ("router", "up", "down"):
            old, new = (s.tensors[f"blocks.{block}.{name}"] for s in (before, after))
            assert [torch.equal(old[m], new[m]) for m in range(5)] == few[block]
    assert not torch.equal(before.tensors["head.weight"], after.tensors["head.weight"])


def test_the_private_mean_of_equal_clients_is_the_plain_one(run_private: RunPrivate):
    """In the first round, by `fedavg`, which divides by all clients as both do; up to float32 where it is added."""
    equal = {
        "partition.kind": "iid",
        "partition.alpha": None,
        "data.train_examples": 110,
        "federation.clients_per_round": 5,
        "federation.rounds": 1,
        "federation.aggregation": "fedavg",
    }
    private = run_private("private", "fft-moe", SUMS, **equal).state.tensors
    plain = run_private("plain", "fft-moe", "off", **equal).state.tensors
    for name, tensor in plain.items():
        torch.testing.assert_close(private[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_closed_form_head_needs_enough_clients(
    run_private: RunPrivate, private_recipe: PrivateRecipe, tmp_path: Path
):
    finished = run_private("run", "fft-moe-solved-head", SUMS)
    plain = run_private("plain", "fft-moe-solved-head", "off", **{"head.update": "frozen", "federation.rounds": 1})
    assert finished.rows[0]["accuracy"] == plain.rows[0]["accuracy"]
    recipe = parse_recipe(private_recipe("fft-moe-solved-head", {"min_contributors": 3}), "tiny")
    with pytest.raises(RunError, match="fewer than 3 clients sent the feature statistics"):
        run(recipe, tmp_path / "few", open_engine=lambda e, f: Unreliable(open_engine(e, f), {0, 1, 4}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (say(num_examples=10), "num_examples 10; expected 1$"),
        (say(num_examples=True), "num_examples True"),
        (say(metrics={"loss": 0.5}), "its metrics are"),
        (say(preferences={"1": [0], "2": [0]}), "its preferences are"),
        (of(lambda h, t: h.update(shares={b: [0.1] * len(ids) for b, ids in h["experts"].items()})), "its shares are"),
        (of(lambda h, t: h["experts"].update({b: ids[:-1] for b, ids in h["experts"].items()})), "its experts are"),
    ],
)
def test_a_private_update_with_more_than_sums_is_rejected(private_recipe: PrivateRecipe, spoil: Any, reason: str):
    known = record(private_recipe("fft-moe", NOISY), "train", rounds=1)
    message = spoil(known.replies[known.victim])
    with pytest.raises(Rejected, match=reason):
        screen(message, known.expectation(known.victim))
    assert screen(known.replies[known.victim], known.expectation(known.victim)).num_examples == 1


def test_private_statistics_state_no_number_of_examples(private_recipe: PrivateRecipe):
    known = record(private_recipe("fft-moe-sums", SUMS), "sums", rounds=1)
    sizes = {len(message) for message in known.replies.values()}
    assert len(sizes) == 1
    for client_id, message in known.replies.items():
        assert unpack_update(message).num_examples == 1
        screen(message, known.expectation(client_id))
    none = of(lambda h, t: [tensor.zero_() for tensor in t.values()])(known.replies[known.victim])
    assert none is not None
    with pytest.raises(Rejected, match="num_examples 0"):
        screen(none, known.expectation(known.victim))


def test_a_site_refuses_a_server_that_asks_for_more_than_the_recipe(private_recipe: PrivateRecipe):
    """The server asks for an update that is not concealed, or not clipped."""
    known = record(private_recipe("fft-moe", NOISY), "train", rounds=1)
    plan, method = known.plan.clients[0], known.experiment.method
    agreed = make_agreement(known.experiment.recipe, known.experiment.model, plan.client_id, plan.budget.name)

    def asked(**training: Any) -> bytes:
        own = replace(plan, training=replace(plan.training, **training))
        return pack_plan(own, method.download(known.state, own))

    screen_plan(asked(), agreed)
    for more in ({"private": False}, {"clip_norm": None}, {"clip_norm": 50.0}):
        with pytest.raises(InputError, match="the server asks for the training settings"):
            screen_plan(asked(**more), agreed)


def test_a_run_with_noise_writes_nothing_of_who_took_part(
    private_recipe: PrivateRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Runs in which all clients answer, some or none have equal files, but for what noise decides."""
    recipe = parse_recipe(private_recipe("head-only", NOISY, **{"federation.clients_per_round": 5}), "tiny")
    noisy = {"accuracy", "accuracy_by_tier", "accuracy_by_round", "accuracy_interval", "labels", "verdict"}
    written: list[Any] = []
    for number, lost in enumerate(((), {1, 2}, range(5))):
        output = tmp_path / str(number)
        console = Console(file=sys.stdout)
        opened = lambda e, f, lost=lost: Unreliable(open_engine(e, f), lost)  # noqa: E731
        run(recipe, output, Progress(console), open_engine=opened)
        summary, rows = Finished(output).summary, Finished(output).rows
        assert ("absent: client 1 (lost for a test)" in capsys.readouterr().out) == (1 in lost)
        for page in ("report.html", "report-figures.csv"):
            assert "client 1" not in (output / page).read_text()
        assert "Not recorded, and neither are messages and times" in (output / "report.html").read_text()
        kept = [{name: value for name, value in row.items() if name not in noisy} for row in (summary, *rows)]
        written.append(kept)
    assert written[0] == written[1] == written[2]


def test_a_round_with_an_empty_cohort_is_a_release(run_private: RunPrivate, monkeypatch: pytest.MonkeyPatch):
    with_chance(monkeypatch, uniform=lambda count: np.ones(count))
    finished = run_private("run", "fft-moe", NOISY)
    assert finished.summary["privacy"]["releases"] == 2
    assert finished.summary["rounds_void"] == 0
    before = run_private("before", "fft-moe", SUMS, **{"federation.learning_rate": 1e-30, "federation.rounds": 1})
    for name in ("blocks.1.up", "head.bias", "shared.2.down"):
        assert (finished.state.tensors[name] != before.state.tensors[name]).all()


@pytest.mark.parametrize("quantile", [None, 0.25])
def test_noise_has_the_stated_standard_deviation(
    run_private: RunPrivate, private_recipe: PrivateRecipe, monkeypatch: pytest.MonkeyPatch, quantile: float | None
):
    """Noise of 1 in the place of chance, and nobody's changes: z C / (q N) for the head, of z_delta where C moves."""
    with_chance(monkeypatch, uniform=lambda count: np.ones(count), draw=lambda shape: torch.ones(*shape).double())
    one = {"federation.rounds": 1}
    finished = run_private("run", "head-only", {**NOISY, "clip_quantile": quantile}, **one)
    experiment = compose(parse_recipe(private_recipe("head-only", "off"), "tiny"))
    before, z, z_count = experiment.method.init(experiment.model), 8.0, 20.0
    z_delta = z if quantile is None else z / 0.96**0.5
    for name, old in before.tensors.items():
        moved = (finished.state.tensors[name] - old).double()
        torch.testing.assert_close(moved, torch.full_like(moved, z_delta * 0.5 / 3), rtol=1e-5, atol=1e-6)
    norm = 0.5 if quantile is None else 0.5 * math.exp(-0.2 * (0.5 + z_count / 3 - quantile))
    assert spent(finished.folder)["clip_norm"] == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_client_that_diverges_does_not_show(
    private_recipe: PrivateRecipe, caplog: pytest.LogCaptureFixture, tmp_path: Path, at_once: int
):
    """It sends a message like any other, and its own log has the reason. Without privacy the run ends with an error."""
    head, engine = {"kind": "averaged", "learning_rate": 1e30}, {"clients_per_batch": at_once}
    diverging = {"head": head, "engine": engine, "federation.learning_rate": 1e30, "federation.local_steps": 7}
    known = record(private_recipe("fft-moe", NOISY, **diverging), "train", rounds=1)
    for message in known.replies.values():
        update = unpack_update(message)
        assert joint_norm(update.tensors) <= NOISY["clip_norm"] * (1 + 1e-6)
        assert update.metrics == {}
    assert caplog.messages
    assert all("the loss became" in said and "its change is bounded" in said for said in caplog.messages)
    run(parse_recipe(private_recipe("fft-moe", NOISY, **diverging), "tiny"), tmp_path / "run")
    with pytest.raises(RunError, match="the loss became"):
        record(private_recipe("fft-moe", "off", **diverging), "train", rounds=1)


def test_two_private_runs_have_different_cohorts_and_noise(run_private: RunPrivate):
    one, other = (run_private(name, "head-only", NOISY).state.tensors["head.bias"] for name in ("one", "other"))
    assert (one != other).all()


def test_an_adaptive_clip_norm_stays_on_the_server_and_is_saved(private_recipe: PrivateRecipe, tmp_path: Path):
    """Clients are asked for the same in every round, and all that chance named are waited for."""
    asked: list[Training] = []

    class Listening(Wrapped):
        def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
            asked.extend(unpack_plan(message)[0].training for group in groups for _, message in group)
            assert quota is None or quota.missing is None
            return self.inner.run_clients(groups, quota)

    def last_norm(name: str, privacy: dict[str, Any]) -> float:
        recipe = parse_recipe(private_recipe("head-only", privacy, **{"federation.clients_per_round": 5}), "tiny")
        run(recipe, tmp_path / name, open_engine=lambda e, f: Listening(open_engine(e, f)))
        assert spent(tmp_path / name)["clip_norm"] == Finished(tmp_path / name).summary["privacy"]["clip_norm"]
        return spent(tmp_path / name)["clip_norm"]

    assert last_norm("fixed", NOISY) == 0.5
    assert {training.clip_norm for training in asked} == {0.5}
    asked.clear()
    assert last_norm("moving", {**NOISY, "clip_quantile": 0.5}) != 0.5
    assert len(asked) == 10
    assert {training.clip_norm for training in asked} == {None}


def test_private_rounds_have_no_substitutes_and_no_quorum(private_recipe: PrivateRecipe, tmp_path: Path):
    """A quorum would reveal how many answered. A round in which no client of the cohort answers releases its noise."""
    all_clients = {"federation.clients_per_round": 5, "federation.quorum": 1.0, "federation.rounds": 3}
    recipe = parse_recipe(private_recipe("head-only", NOISY, **all_clients), "tiny")

    def opened(lost: Collection[int]) -> Any:
        return lambda experiment, folder: Unreliable(open_engine(experiment, folder), lost)

    run(recipe, tmp_path / "one", open_engine=opened({1, 2, 3}))
    assert Finished(tmp_path / "one").summary["privacy"]["releases"] == 3
    assert Finished(tmp_path / "one").summary["rounds_void"] == 0
    run(recipe, tmp_path / "all", open_engine=opened(range(5)))
    silent = Finished(tmp_path / "all")
    assert silent.summary["privacy"]["releases"] == releases(silent.folder) == 3
    assert silent.summary["privacy"]["epsilon"] == Finished(tmp_path / "one").summary["privacy"]["epsilon"]
    assert silent.summary["rounds_void"] == 0
    states = (unpack_state(path.read_bytes()) for path in (silent.folder / "checkpoints").glob("*.safetensors"))
    saved = [state.tensors["head.bias"] for state in states]
    assert len(saved) == 3
    for one, other in itertools.combinations(saved, 2):
        assert (one != other).all()


@pytest.mark.parametrize(("privacy", "are_written"), [(SUMS, True), (NOISY, False)], ids=["sums", "noisy"])
def test_a_differentially_private_run_writes_no_digest_of_clients_rows(
    run_private: RunPrivate, privacy: dict[str, Any], are_written: bool
):
    """Who guesses the rows could check the guess with it."""
    bound = (run_private("run", "fft-moe", privacy).folder / "bindings.json").read_text()
    assert ("training rows" in bound, "division" in bound) == (are_written, are_written)
    assert "test rows" in bound
