"""Clients that protect single examples: their gradients are clipped and noisy, and their examples a random sample."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.client import update as update_module
from fftmoe.client.example_privacy import noisy_backward, poisson_batches, sampling_rate
from fftmoe.client.screening import screen_plan
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.methods.noise import normal
from fftmoe.records import Release, Training, pack_plan, unpack_update
from fftmoe.server.accountant import Adjacency, epsilon_of
from fftmoe.setup.run import resume, run
from fftmoe.setup.site import make_agreement
from private_runs import LABELS
from tampering import recipe_of, record

EXAMPLES = {"clip_norm": 0.7, "noise_multiplier": 1.3, "delta": 0.001}
SWITCH = {"adapter.residents": "balanced", "adapter.balance": "switch", "data.labels": LABELS}
TRAINING = Training(5, 0.1, 1.0, local_steps=3, example_clip=0.7, example_noise=1.3)
STEPS = 2  # a round
METHODS = ("fft-moe", "fedit", "head-only")

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def values(recipe_values: dict[str, Any]) -> Values:
    """`values("fft-moe", epsilon=3.0, **{"federation.rounds": 7})`: the recipe of such a run."""

    def make(method: str, *, examples: Any = EXAMPLES, privacy: Any = None, **changes: Any) -> dict[str, Any]:
        recipe = recipe_of(method, recipe_values, **{**SWITCH, **changes})
        return {**recipe, "privacy": {"min_contributors": 2, "examples": examples, **(privacy or {})}}

    return make


def no_noise(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(tuple(shape), dtype=torch.float64)


def toy(seed: int, num_examples: int) -> tuple[list[torch.nn.Parameter], Callable[..., Any]]:
    """Two parameters, and losses whose gradients are of very unlike sizes."""
    rng = torch.Generator().manual_seed(seed)
    parameters = [
        torch.nn.Parameter(torch.randn(3, generator=rng)),
        torch.nn.Parameter(torch.randn(2, 5, generator=rng)),
    ]
    scales = torch.logspace(-3, 3, num_examples)
    inputs = [torch.randn(num_examples, *p.shape, generator=rng) for p in parameters]

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        per_row = sum(((x[rows] * p).flatten(1).sum(1) for x, p in zip(inputs, parameters, strict=True)), 0)
        return (scales[rows] * torch.as_tensor(per_row)).mean()

    return parameters, loss_of


def released(parameters: list[torch.nn.Parameter], loss_of: Any, rows: Any, draw: Any = no_noise) -> torch.Tensor:
    """The released sum over the examples, as one vector of all parameters."""
    noisy_backward(loss_of, torch.as_tensor(rows, dtype=torch.int64), parameters, TRAINING, draw)
    return TRAINING.batch_size * torch.cat([torch.as_tensor(p.grad).flatten() for p in parameters]).double()


@given(st.integers(0, 10**6), st.integers(1, 13), st.data())
@settings(max_examples=40, deadline=None)
def test_one_example_moves_the_sum_by_at_most_the_clip_norm(seed: int, num_examples: int, data: st.DataObject):
    parameters, loss_of = toy(seed, num_examples)
    left_out = data.draw(st.integers(0, num_examples - 1))
    all_examples = list(range(num_examples))
    without = [row for row in all_examples if row != left_out]
    moved = released(parameters, loss_of, all_examples) - released(parameters, loss_of, without)
    assert moved.norm() <= 0.7 * (1 + 1e-5)  # gradients are float32
    assert released(parameters, loss_of, all_examples).norm() <= 0.7 * num_examples * (1 + 1e-5)


def test_gradients_below_the_bound_are_not_clipped():
    parameters, loss_of = toy(1, 7)
    small = lambda rows: 1e-6 * loss_of(rows)  # noqa: E731
    total = released(parameters, small, range(7)).float()
    for p in parameters:
        p.grad = None
    (7 * small(torch.arange(7))).backward()
    torch.testing.assert_close(total, torch.cat([torch.as_tensor(p.grad).flatten() for p in parameters]))


def test_an_example_whose_gradient_is_not_finite_counts_as_zero():
    parameters, loss_of = toy(4, 5)
    for none in (math.nan, math.inf):
        broken = lambda rows, none=none: loss_of(rows) * (none if int(rows) == 2 else 1.0)  # noqa: E731
        assert torch.equal(released(parameters, broken, range(5)), released(parameters, loss_of, [0, 1, 3, 4]))


def test_noise_on_every_number_has_the_stated_standard_deviation():
    """This also holds for an empty sample, and for parameters that the loss does not depend on."""
    parameters, loss_of = toy(2, 5)
    unused = torch.nn.Parameter(torch.zeros(50_000))
    noise = released([*parameters, unused], loss_of, [], normal) / (0.7 * 1.3)
    assert (noise != 0).all()
    assert float(noise[-50_000:].std()) == pytest.approx(1.0, abs=0.02)  # 6 deviations of 50,000 numbers
    assert float(noise[-50_000:].mean()) == pytest.approx(0.0, abs=0.03)


def test_every_example_is_drawn_independently():
    rows = np.arange(100, 131)
    batches = poisson_batches(rows, 7, 4000)
    counts = np.bincount(np.concatenate([batch.numpy() for batch in batches]), minlength=131)[100:]
    rate = sampling_rate(7, 31)
    assert rate == 7 / 31
    np.testing.assert_allclose(counts / 4000, rate, atol=6 * math.sqrt(rate * (1 - rate) / 4000))
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.var() == pytest.approx(31 * rate * (1 - rate), rel=0.15)
    assert {len(batch) for batch in poisson_batches(rows, 50, 3)} == {31}
    other = poisson_batches(rows, 7, 20)  # of the operating system, not of a seed
    assert any(not torch.equal(a, b) for a, b in zip(other, poisson_batches(rows, 7, 20), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_message_does_not_reveal_which_examples_were_drawn(
    values: Values, method: str, monkeypatch: pytest.MonkeyPatch
):
    """Even a client that drew no example sends the same experts, header and length."""
    headers = []
    for sizes in (None, 0):
        if sizes == 0:
            monkeypatch.setattr(update_module, "poisson_batches", lambda i, b, steps: [torch.zeros(0).long()] * steps)
        known = record(values(method), "train", rounds=1)
        message = known.replies[known.victim]
        update = unpack_update(message)
        assert (
            update.experts == known.plan.clients[[c.client_id for c in known.plan.clients].index(known.victim)].experts
        )
        assert (update.metrics, update.shares, update.preferences, update.num_examples) == ({}, {}, {}, 1)
        assert all((tensor != 0).flatten(1).any(1).all() for tensor in update.tensors.values() if tensor.dim() > 1)
        headers.append((len(message), replace(update, tensors={})))
    assert headers[0] == headers[1]


def test_a_site_refuses_a_server_that_asks_for_less_noise(values: Values):
    known = record(values("fft-moe"), "train", rounds=1)
    plan, method = known.plan.clients[0], known.experiment.method
    agreed = make_agreement(known.experiment.recipe, known.experiment.model, plan.client_id, plan.budget.name)
    for less in ({"example_noise": 1.2}, {"example_clip": 0.8}, {"example_clip": None}, {"local_steps": 7}):
        own = replace(plan, training=replace(plan.training, **less))
        with pytest.raises(InputError, match="the server asks for the training settings"):
            screen_plan(pack_plan(own, method.download(known.state, own)), agreed)


def cost(times: int) -> float:
    """Of a client with 22 of the 113 rows, which is asked so many times."""
    return epsilon_of([Release(5 / 22, 1.3, STEPS * times)], 0.001, Adjacency.EXAMPLE_REPLACED)


def times_asked(folder: Path) -> dict[str, int]:
    (asked,) = json.loads((folder / "checkpoints/example_privacy.json").read_text())["asked"]
    return asked["times"]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_counts_the_epsilon_of_single_examples(values: Values, method: str, tmp_path: Path):
    """The epsilon is that of the client with the fewest examples; it is 0 before the first round."""
    run(parse_recipe(values(method, **{"partition": {"kind": "iid", "num_clients": 5}}), "tiny"), tmp_path / "run")
    privacy = summary(tmp_path / "run")["privacy"]["examples"]
    asked = times_asked(tmp_path / "run")
    times = max(asked.values())
    assert sum(asked.values()) == 6  # two rounds of three clients
    assert privacy["adjacency"] == "one example of a client is replaced by any other; the number of examples stays"
    assert (privacy["steps"], privacy["sampling_rate"]) == (STEPS * times, 5 / 22)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert privacy["epsilon"] == rows[-1]["example_epsilon"] == cost(times) > rows[1]["example_epsilon"] > 0


def test_a_run_ends_before_it_exceeds_its_budget(values: Values, tmp_path: Path):
    one, two = cost(1), cost(2)
    recipe = values(
        "head-only",
        examples={**EXAMPLES, "epsilon": (one + two) / 2},
        **{"partition": {"kind": "iid", "num_clients": 5}, "federation.clients_per_round": 5, "federation.rounds": 7},
    )
    run(parse_recipe(recipe, "tiny"), tmp_path / "run")
    assert summary(tmp_path / "run")["rounds_completed"] == 1
    assert summary(tmp_path / "run")["privacy"]["examples"]["stopped_early"]
    dear = {**recipe, "privacy": {**recipe["privacy"], "examples": {**EXAMPLES, "epsilon": one / 2}}}
    with pytest.raises(InputError, match=r"a single round costs an epsilon of .* raise privacy.examples.noise"):
        run(parse_recipe(dear, "tiny"), tmp_path / "dear")
    assert not (tmp_path / "dear").exists()


def test_a_repeated_round_counts_twice(values: Values, tmp_path: Path):
    folder, ledger = tmp_path / "run", tmp_path / "run/checkpoints/example_privacy.json"
    run(parse_recipe(values("head-only"), "tiny"), folder)
    before = times_asked(folder)
    (folder / "summary.json").unlink()
    newest = max((folder / "checkpoints").glob("round-*.json"))
    newest.unlink()
    resume(folder)
    after = times_asked(folder)
    assert sum(after.values()) == sum(before.values()) + 3
    (folder / "summary.json").unlink(missing_ok=True)
    ledger.write_text("{}")
    with pytest.raises(InputError, match="does not say how often this run has asked its clients"):
        resume(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"privacy": {"epsilon": 3.0, "clip_norm": 1.0, "delta": 0.01}}, "use one of the two"),
        ({"federation.local_steps": None, "federation.local_epochs": 1}, "set federation.local_steps"),
        ({"adapter.balance": "heterogeneity-aware"}, "use adapter.balance=switch or none"),
        ({"federation.clip_gradients": 0.5}, "set federation.clip_gradients=off"),
        ({"head": {"kind": "closed-form"}}, "use head.kind=averaged or one-vs-all"),
        ({"examples": {**EXAMPLES, "noise_multiplier": 0.1}}, "privacy.examples.noise_multiplier"),
    ],
)
def test_a_recipe_that_cannot_protect_examples_is_refused(values: Values, change: dict[str, Any], reason: str):
    with pytest.raises(InputError, match=reason):
        parse_recipe(values("fft-moe", **change), "tiny")


def test_an_unsuitable_population_is_refused(values: Values, tmp_path: Path):
    for change, reason in (
        ({"examples": {**EXAMPLES, "delta": 0.5}}, "allow the run to reveal one of the"),
        ({"engine": {"clients_per_batch": 2}}, "computes the gradient of one example at a time"),
    ):
        with pytest.raises(InputError, match=reason):
            run(parse_recipe(values("fft-moe", **change), "tiny"), tmp_path / "run")
        assert not (tmp_path / "run").exists()


# An audit of the step itself: an adversary who knows all examples but one, and sees the noisy gradient


def audited(noise: float, clip: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch) -> float:
    """The mean distance of releases with the canary and without, in standard deviations of the stated noise."""
    if clip is not None:
        monkeypatch.setattr("fftmoe.client.example_privacy.clipped", clip)
    parameters, loss_of = toy(3, 11)  # the last example's gradient is a thousand times the bound
    training = replace(TRAINING, example_noise=noise)
    sums = {}
    for rows in (range(11), range(10)):
        noisy_backward(loss_of, torch.tensor(rows), parameters, training, no_noise)
        sums[len(rows)] = 5 * torch.cat([torch.as_tensor(p.grad).flatten() for p in parameters]).double()
    canary = sums[11] - sums[10]
    scores = {}
    for rows in (range(11), range(10)):
        found = []
        for _ in range(400):
            noisy_backward(loss_of, torch.tensor(rows), parameters, training, normal)
            grads = torch.cat([torch.as_tensor(p.grad).flatten() for p in parameters]).double()
            found.append(float(5 * grads @ canary / canary.norm()))
        scores[len(rows)] = np.array(found)
    return float((scores[11].mean() - scores[10].mean()) / (1.3 * 0.7))


def test_an_audit_detects_the_canary_no_better_than_stated(monkeypatch: pytest.MonkeyPatch):
    """With and without it lie 1 / z deviations apart, as the accountant assumes; each mean is known to 0.05."""
    assert audited(1.3, None, monkeypatch) == pytest.approx(1 / 1.3, abs=0.3)


def test_an_audit_detects_a_step_without_clipping(monkeypatch: pytest.MonkeyPatch):
    assert audited(1.3, lambda gradients, most: gradients, monkeypatch) > 100
