"""Whole private runs: what they write, what they refuse, how they spend a budget, and what a crash costs."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fftmoe.client.screening import screen_plan
from fftmoe.config import parse_recipe
from fftmoe.engines.base import Engine, Fault, Group, Reply
from fftmoe.errors import InputError, RunError
from fftmoe.methods.noise import normal
from fftmoe.records import ServerState, Training, pack_plan, unpack_plan, unpack_update
from fftmoe.rounds.private import NoisySums
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.screening import Rejected, screen
from fftmoe.setup import privacy as privacy_module
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.run import resume, run
from fftmoe.setup.site import make_agreement
from fftmoe.store import RunFolder, pack_state
from spoiling import of, say
from tampering import recipe_of, record

SUMS = {"min_contributors": 2}
NOISY = {"min_contributors": 1, "clip_norm": 0.5, "noise_multiplier": 8.0, "delta": 0.001}

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def values(recipe_values: dict[str, Any]) -> Values:
    """`values("fft-moe", SUMS, **{"federation.rounds": 7})`: a recipe of five clients, three in a round."""

    def make(method: str, privacy: Any, **changes: Any) -> dict[str, Any]:
        recipe = recipe_of(method, recipe_values, **{"adapter.residents": "balanced", **changes})
        return {**recipe, "privacy": privacy}

    return make


Finish = Callable[..., Path]


@pytest.fixture
def finish(values: Values, tmp_path: Path) -> Finish:
    """`finish("name", "fft-moe", SUMS, **changes)`: the folder of this run."""

    def make(name: str, method: str, privacy: Any, **changes: Any) -> Path:
        run(parse_recipe(values(method, privacy, **changes), "tiny"), tmp_path / name)
        return tmp_path / name

    return make


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> ServerState:
    found = RunFolder(folder).load_newest().state
    assert found is not None
    return found


def spent(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoints" / "privacy.json").read_text())


# What the server keeps


@pytest.mark.parametrize(
    "method",
    ["fft-moe", "fedsa-lora", "head-only", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fedit", "ffa-lora"))],
)
@pytest.mark.parametrize("privacy", [SUMS, NOISY])
def test_a_private_run_keeps_nothing_of_single_clients(finish: Finish, method: str, privacy: dict[str, Any]):
    folder = finish("run", method, privacy)
    for row in rows(folder):
        known = {"round", "accuracy", "experts_released", "epsilon", "seconds", "client_seconds", "by_tier"}
        assert row.keys() <= known | {"bytes_down", "bytes_up", "phase_seconds", "metric"}
        assert row["by_tier"].keys() <= {"small", "large"}
        assert isinstance(row.get("epsilon", 0.0), float)
    assert not {"train_loss", "expert_load_cv"} & summary(folder).keys()
    kept = state(folder)
    assert kept.preferences == {}
    for load in kept.load.values():
        assert torch.equal(load, torch.full_like(load, 1 / 5))
    assert b"loss" not in pack_state(kept)
    assert summary(folder)["faults"] == {}
    if privacy is NOISY:
        told = summary(folder)["privacy"]
        assert told["releases"] == 2
        assert told["epsilon"] == rows(folder)[-1]["epsilon"] > rows(folder)[-2]["epsilon"] > 0
        assert not told["stopped_early"]
        page = (folder / "report.html").read_text()
        assert f"{told['epsilon']:.3f} at delta 0.001" in page
    else:
        assert summary(folder)["privacy"] == SUMS


@pytest.mark.parametrize("upload", ["float32", "int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_all_clients_of_a_tier_send_as_many_bytes(finish: Finish, upload: str):
    """The sizes do not depend on routing; round numbers and client ids have one digit."""
    folder = finish("run", "fft-moe", SUMS, **{"federation.upload": upload, "federation.rounds": 4})
    each: dict[str, set[float]] = {}
    before: dict[str, dict[str, float]] = {}
    for row in rows(folder):
        for tier, now in row["by_tier"].items():
            old = before.get(tier, {"client_rounds": 0, "bytes_up": 0})
            if new := now["client_rounds"] - old["client_rounds"]:
                each.setdefault(tier, set()).add((now["bytes_up"] - old["bytes_up"]) / new)
        before = row["by_tier"]
    assert {tier: len(sizes) for tier, sizes in each.items()} == {"small": 1, "large": 1}


def test_tensors_with_too_few_holders_do_not_change(finish: Finish, values: Values):
    """They stay equal to the bit; one of the three clients in the round holds expert 1 of block 2."""
    one = {"federation.rounds": 1}
    experiment = compose(parse_recipe(values("fft-moe", SUMS, **one), "tiny"))
    before, after = experiment.method.init(experiment.model), state(finish("run", "fft-moe", SUMS, **one))
    held = experiment.method.assign(before, choose_cohort(5, 3, 3, 1)).values()
    few = {block: [sum(m in own.get(block, ()) for own in held) < 2 for m in range(5)] for block in (1, 2)}
    assert few[2] == [False, True, False, False, False]
    for block in (1, 2):
        for name in ("router", "up", "down"):
            old, new = (s.tensors[f"blocks.{block}.{name}"] for s in (before, after))
            assert [torch.equal(old[m], new[m]) for m in range(5)] == few[block]
    assert not torch.equal(before.tensors["head.weight"], after.tensors["head.weight"])


def test_the_private_mean_of_equal_clients_is_the_plain_one(finish: Finish):
    """In the first round, by `fedavg`, which divides by everyone as both do; up to float32 where it is added."""
    equal = {
        "partition.kind": "iid",
        "partition.alpha": None,
        "data.train_examples": 110,
        "federation.clients_per_round": 5,
        "federation.rounds": 1,
        "federation.aggregation": "fedavg",
    }
    private = state(finish("private", "fft-moe", SUMS, **equal)).tensors
    plain = state(finish("plain", "fft-moe", "off", **equal)).tensors
    for name, tensor in plain.items():
        torch.testing.assert_close(private[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_closed_form_head_needs_enough_clients(finish: Finish, values: Values, tmp_path: Path):
    folder = finish("run", "fft-moe-solved-head", SUMS)
    plain = finish("plain", "fft-moe-solved-head", "off", **{"head.update": "frozen", "federation.rounds": 1})
    assert rows(folder)[0]["accuracy"] == rows(plain)[0]["accuracy"]
    recipe = parse_recipe(values("fft-moe-solved-head", {"min_contributors": 3}), "tiny")
    with pytest.raises(RunError, match="fewer than 3 clients sent the feature statistics"):
        run(recipe, tmp_path / "few", open_engine=lambda e, f: Unreliable(open_engine(e, f), {0, 1, 4}))


# Screening


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
def test_a_private_update_with_more_than_sums_is_rejected(values: Values, spoil: Any, reason: str):
    known = record(values("fft-moe", NOISY), "train", rounds=1)
    message = spoil(known.replies[known.victim])
    with pytest.raises(Rejected, match=reason):
        screen(message, known.expectation(known.victim))
    assert screen(known.replies[known.victim], known.expectation(known.victim)).num_examples == 1


def test_private_statistics_state_no_number_of_examples(values: Values):
    known = record(values("fft-moe-sums", SUMS), "sums", rounds=1)
    sizes = {len(message) for message in known.replies.values()}
    assert len(sizes) == 1
    for client_id, message in known.replies.items():
        assert unpack_update(message).num_examples == 1
        screen(message, known.expectation(client_id))
    none = of(lambda h, t: [tensor.zero_() for tensor in t.values()])(known.replies[known.victim])
    assert none is not None
    with pytest.raises(Rejected, match="num_examples 0"):
        screen(none, known.expectation(known.victim))


def test_a_site_refuses_a_server_that_asks_for_more_than_the_recipe(values: Values):
    """The server asks for an update that is not concealed, or not clipped."""
    known = record(values("fft-moe", NOISY), "train", rounds=1)
    plan, method = known.plan.clients[0], known.experiment.method
    agreed = make_agreement(known.experiment.recipe, known.experiment.model, plan.client_id, plan.budget.name)

    def asked(**training: Any) -> bytes:
        own = replace(plan, training=replace(plan.training, **training))
        return pack_plan(own, method.download(known.state, own))

    screen_plan(asked(), agreed)
    for more in ({"private": False}, {"clip_norm": None}, {"clip_norm": 50.0}):
        with pytest.raises(InputError, match="the server asks for the training settings"):
            screen_plan(asked(**more), agreed)


# Noise


def with_chance(monkeypatch: pytest.MonkeyPatch, **chance: Any) -> None:
    monkeypatch.setattr(privacy_module, "NoisySums", partial(NoisySums, **chance))


def test_a_round_with_an_empty_cohort_is_a_release(finish: Finish, monkeypatch: pytest.MonkeyPatch):
    with_chance(monkeypatch, uniform=lambda count: np.ones(count))
    folder = finish("run", "fft-moe", NOISY)
    assert summary(folder)["privacy"]["releases"] == 2
    assert (summary(folder)["rounds_void"], summary(folder)["bytes_up"]) == (0, 0)
    before = finish("before", "fft-moe", SUMS, **{"federation.learning_rate": 1e-30, "federation.rounds": 1})
    for name in ("blocks.1.up", "head.bias", "shared.2.down"):
        assert (state(folder).tensors[name] != state(before).tensors[name]).all()


@pytest.mark.parametrize("quantile", [None, 0.25])
def test_noise_has_the_stated_standard_deviation(
    finish: Finish, values: Values, monkeypatch: pytest.MonkeyPatch, quantile: float | None
):
    """Noise of 1 in the place of chance, and nobody's changes: z C / (q N) for the head, of z_delta where C moves."""
    with_chance(monkeypatch, uniform=lambda count: np.ones(count), draw=lambda shape: torch.ones(*shape).double())
    one = {"federation.rounds": 1}
    folder = finish("run", "head-only", {**NOISY, "clip_quantile": quantile}, **one)
    experiment = compose(parse_recipe(values("head-only", "off"), "tiny"))
    before, z, z_count = experiment.method.init(experiment.model), 8.0, 20.0
    z_delta = z if quantile is None else z / 0.96**0.5
    for name, old in before.tensors.items():
        moved = (state(folder).tensors[name] - old).double()
        torch.testing.assert_close(moved, torch.full_like(moved, z_delta * 0.5 / 3), rtol=1e-5, atol=1e-6)
    norm = 0.5 if quantile is None else 0.5 * math.exp(-0.2 * (0.5 + z_count / 3 - quantile))
    assert spent(folder)["clip_norm"] == pytest.approx(norm, rel=1e-12)


def test_two_private_runs_have_different_cohorts_and_noise(finish: Finish):
    one, other = (state(finish(name, "head-only", NOISY)).tensors["head.bias"] for name in ("one", "other"))
    assert (one != other).all()


def test_an_adaptive_clip_norm_stays_on_the_server_and_is_saved(values: Values, tmp_path: Path):
    """Clients are asked for the same in every round, and all that chance named are waited for."""
    asked: list[Training] = []

    class Listening(Wrapped):
        def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
            asked.extend(unpack_plan(message)[0].training for group in groups for _, message in group)
            assert enough is None
            return self.inner.run_clients(groups, enough)

    def finish(name: str, privacy: dict[str, Any]) -> float:
        recipe = parse_recipe(values("head-only", privacy, **{"federation.clients_per_round": 5}), "tiny")
        run(recipe, tmp_path / name, open_engine=lambda e, f: Listening(open_engine(e, f)))
        assert spent(tmp_path / name)["clip_norm"] == summary(tmp_path / name)["privacy"]["clip_norm"]
        return spent(tmp_path / name)["clip_norm"]

    assert finish("fixed", NOISY) == 0.5
    assert {training.clip_norm for training in asked} == {0.5}
    asked.clear()
    assert finish("moving", {**NOISY, "clip_quantile": 0.5}) != 0.5
    assert len(asked) == 10
    assert {training.clip_norm for training in asked} == {None}


class Wrapped:
    """An engine of real clients; subclasses change it."""

    reliable = True

    def __init__(self, inner: Engine) -> None:
        self.inner = inner

    def absent(self) -> Collection[int]:
        return ()

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
        raise NotImplementedError

    def close(self) -> None:
        self.inner.close()

    def peak_rss_mib(self) -> float:
        return 0.0


class Unreliable(Wrapped):
    """These clients never answer."""

    reliable = False

    def __init__(self, inner: Engine, lost: Collection[int]) -> None:
        super().__init__(inner)
        self.lost = lost

    def absent(self) -> Collection[int]:
        return self.lost

    def run_clients(self, groups: Sequence[Group], enough: int | None = None) -> Iterator[Reply | Fault]:
        for group in groups:
            for client_id, message in group:
                if client_id in self.lost:
                    yield Fault(client_id, "absent", "lost for a test")
                else:
                    yield from self.inner.run_clients([[(client_id, message)]])


def test_private_rounds_have_no_substitutes_and_no_quorum(values: Values, tmp_path: Path):
    """A quorum would tell how many came. Rounds in which nobody of those asked answers release nothing."""
    everyone = {"federation.clients_per_round": 5, "federation.quorum": 1.0, "federation.rounds": 3}
    recipe = parse_recipe(values("head-only", NOISY, **everyone), "tiny")

    def opened(lost: Collection[int]) -> Any:
        return lambda experiment, folder: Unreliable(open_engine(experiment, folder), lost)

    run(recipe, tmp_path / "one", open_engine=opened({1, 2, 3}))
    assert summary(tmp_path / "one")["privacy"]["releases"] == 3
    assert summary(tmp_path / "one")["rounds_void"] == 0
    with pytest.raises(RunError, match="last 3 rounds had no update and changed nothing"):
        run(recipe, tmp_path / "all", open_engine=opened(range(5)))
    assert spent(tmp_path / "all")["releases"] == 0


# The budget


def test_a_run_ends_before_it_exceeds_its_budget(finish: Finish, values: Values, cli: Any):
    costs = [row["epsilon"] for row in rows(finish("whole", "fft-moe", NOISY, **{"federation.rounds": 5}))[1:]]
    budget = {**NOISY, "epsilon": (costs[2] + costs[3]) / 2}
    decayed = {"federation.rounds": 5, "federation.ema_decay": 0.5}
    folder = finish("run", "fft-moe", budget, **decayed)
    found = summary(folder)
    assert (found["rounds_completed"], found["privacy"]["releases"], found["privacy"]["stopped_early"]) == (3, 3, True)
    assert found["privacy"]["epsilon"] == costs[2] <= budget["epsilon"]
    assert set(found["accuracy_by_tier"]) == {"small", "large"}
    assert "ended early" in (folder / "report.html").read_text()
    saved, kept = load_file(folder / "adapter" / "adapter_model.safetensors").values(), state(folder)
    bias = {name: t["head.bias"] for name, t in (("served", kept.average), ("last", kept.tensors))}
    assert [any(torch.equal(t, own) for t in saved) for own in bias.values()] == [True, False]
    assert cli("evaluate", folder).status == 0


def test_calibrated_noise_suffices_for_all_rounds(finish: Finish):
    found = summary(
        finish("run", "head-only", {"clip_norm": 0.5, "epsilon": 0.3, "delta": 0.001, "min_contributors": 2})
    )
    assert 0.297 < found["privacy"]["epsilon"] <= 0.3
    assert found["privacy"]["releases"] == found["rounds_completed"] == 2


class Killed(Exception):
    """Stands in for a signal."""


def killed_in(round: int) -> Callable[[Sequence[int]], torch.Tensor]:
    """Noise of which nothing comes in this round; a head has two tensors."""
    draws: list[int] = []

    def draw(shape: Sequence[int]) -> torch.Tensor:
        draws.append(1)
        if len(draws) > 2 * (round - 1):
            raise Killed
        return normal(shape)

    return draw


@pytest.mark.parametrize("round", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_round_has_been_counted_before_its_noise_is_drawn(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round: int
):
    """The repeated round is counted again, so the ledger never counts less than was released."""
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(round))
        with pytest.raises(Killed):
            finish("run", "head-only", NOISY, **{"federation.rounds": 3})
    assert spent(tmp_path / "run")["releases"] == round
    resume(tmp_path / "run")
    whole = finish("whole", "head-only", NOISY, **{"federation.rounds": 3})
    assert summary(tmp_path / "run")["privacy"]["releases"] == 4
    assert summary(tmp_path / "run")["privacy"]["epsilon"] > summary(whole)["privacy"]["epsilon"]
    assert [r["round"] for r in rows(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_resumed_run_respects_the_budget(finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    costs = [row["epsilon"] for row in rows(finish("whole", "head-only", NOISY, **{"federation.rounds": 3}))[1:]]
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(2))
        with pytest.raises(Killed):
            finish("run", "head-only", {**NOISY, "epsilon": costs[2]}, **{"federation.rounds": 3})
    resume(tmp_path / "run")
    found = summary(tmp_path / "run")
    assert (found["rounds_completed"], found["privacy"]["releases"], found["privacy"]["stopped_early"]) == (2, 3, True)


def test_a_run_without_its_privacy_ledger_cannot_be_resumed(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        with_chance(patch, draw=killed_in(2))
        with pytest.raises(Killed):
            finish("run", "head-only", NOISY)
    (tmp_path / "run" / "checkpoints" / "privacy.json").unlink()
    with pytest.raises(InputError, match="does not say what this run has spent"):
        resume(tmp_path / "run")


# Refusals


@pytest.mark.parametrize(
    ("method", "privacy", "changes", "reason"),
    [
        ("hetlora", SUMS, {}, "weighs every client by the norm"),
        ("flora", SUMS, {}, "hands the factors of every client to all others"),
        ("flexlora", SUMS, {}, "multiplies the factors of every client"),
        ("flame", SUMS, {}, "by the experts that its data activated"),
        ("local-only", SUMS, {}, "sends nothing that privacy could protect"),
        ("centralized", SUMS, {}, "has all data in one place"),
        ("fft-moe", SUMS, {"adapter.residents": "personal"}, "use adapter.residents=balanced"),
        ("fft-moe", SUMS, {"federation.activation_power": 1.0}, "weighs clients by their routing"),
        ("fft-moe", {"min_contributors": 4}, {}, "no round could change anything; lower the first"),
        ("fft-moe-solved-head", NOISY, {}, "use head.kind=averaged or one-vs-all"),
        ("fft-moe", NOISY, {"federation.over_selection": 1}, "leave federation.over_selection out"),
        ("fft-moe", {"epsilon": 1.0}, {}, "needs privacy.clip_norm, .* and privacy.delta"),
        ("fft-moe", {"delta": 0.1}, {}, "belong to differential privacy"),
        ("fft-moe", {"clip_quantile": 0.5}, {}, "belong to differential privacy"),
        ("fft-moe", {**NOISY, "noise_multiplier": 0.2}, {}, "privacy.noise_multiplier: .* 0.3"),
        ("fft-moe", {"epsilom": 1.0}, {}, "unknown key 'privacy.epsilom'; did you mean 'epsilon'"),
        ("fft-moe", None, {}, "privacy: it is empty; write `privacy: {}` for sums only, or `privacy: off`"),
    ],
)
def test_a_recipe_that_cannot_be_private_is_refused(
    values: Values, method: str, privacy: Any, changes: Any, reason: str
):
    with pytest.raises(InputError, match=reason):
        parse_recipe(values(method, privacy, **changes), "tiny")


def test_privacy_and_robustness_exclude_each_other(values: Values):
    recipe = {**values("fft-moe", SUMS), "robustness": {"aggregator": "median"}}
    with pytest.raises(InputError, match="privacy hides single updates and robustness compares them"):
        parse_recipe(recipe, "tiny")


@pytest.mark.parametrize("off", ["off", False])
def test_privacy_can_be_off_and_stays_so(values: Values, off: Any):
    recipe = parse_recipe(values("fft-moe", off), "tiny")
    assert recipe.privacy is None
    dumped = recipe.model_dump(mode="json")
    assert dumped["privacy"] == "off"
    assert parse_recipe(dumped, "again") == recipe
    private = parse_recipe(values("fft-moe", NOISY), "tiny")
    assert parse_recipe(private.model_dump(mode="json"), "again") == private


@pytest.mark.parametrize(
    ("privacy", "reason"),
    [
        ({**NOISY, "delta": 0.2}, "would allow the run to reveal one of 5 clients entirely; set it well below 0.2"),
        ({**NOISY, "epsilon": 0.01}, "a single round costs an epsilon of .* raise privacy.noise_multiplier"),
    ],
)
def test_an_unsuitable_population_is_refused_before_anything_is_written(
    finish: Finish, tmp_path: Path, privacy: dict[str, Any], reason: str
):
    with pytest.raises(InputError, match=reason):
        finish("run", "fft-moe", privacy)
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_reported_before_anything_is_written(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[dp\]'"):
        finish("run", "fft-moe", NOISY)
    assert not (tmp_path / "run").exists()
    finish("sums", "fft-moe", SUMS)


def test_a_run_states_its_privacy_guarantee(recipe_values: dict[str, Any], values: Values, tmp_path: Path, cli: Any):
    path = tmp_path / "private.yaml"
    path.write_text(yaml.safe_dump(values("fft-moe", NOISY)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0
    assert "Noise and cohorts come from the operating system: a second run has other bytes" in outcome.out
    assert "  epsilon " in outcome.out
