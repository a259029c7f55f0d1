"""Every method with every head it can have, from recipe to saved adapter, on a tiny backbone with five clients."""

import dataclasses
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.data import WithPrefix
from fftmoe.methods.registry import METHODS
from fftmoe.records import Tensors, pack_plan, unpack_update
from fftmoe.server.solve import plan_sums
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.clients import build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from finished import SUMMARY_KEYS, check_same
from five_clients import AVERAGED, CLOSED, CLOSED_FORM, EVERY_METHOD, FROZEN, PERSONAL
from plain_sgd import plain_sgd
from run_fixtures import ComposeFive, FiveRecipe, PlanTiny, RunFive, RunTiny
from summation import additions
from tampering import Kept

CELLS = [
    *(pytest.param(method, AVERAGED, id=f"{method}-averaged") for method in EVERY_METHOD),
    *(pytest.param(method, head, id=f"{method}-closed-form") for method, head in CLOSED_FORM.items()),
]


@pytest.mark.parametrize(("method", "head"), CELLS)
def test_a_run_finishes_with_a_complete_summary(run_five: RunFive, method: str, head: dict[str, Any]):
    finished = run_five(method, head)
    summary, rows = finished.summary, finished.rows
    assert set(summary) >= SUMMARY_KEYS
    assert (summary["method"], summary["rounds_completed"]) == (method, 2)
    assert summary["num_clients"] == (1 if method == "centralized" else 5)
    tiers = {"large"} if method == "centralized" else {"small", "large"}
    assert set(summary["accuracy_by_tier"]) == set(summary["trainable_parameters_by_tier"]) == tiers
    measured = [summary["accuracy"], *summary["accuracy_by_tier"].values(), *summary["reweighted_accuracy"].values()]
    assert all(0 <= value <= 1 for value in measured)
    assert summary["bytes_up"] > 0
    assert summary["bytes_down"] > 0
    assert [row["round"] for row in rows] == [0, 1, 2]
    for key in ("bytes_up", "bytes_down"):
        assert [row[key] for row in rows] == sorted(row[key] for row in rows)
        # Before the first round clients are only asked for feature statistics.
        assert (rows[0][key] > 0) is (head["kind"] == "closed-form")
    assert all(torch.isfinite(tensor).all() for tensor in finished.state.tensors.values())
    assert (finished.folder / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(("method", "head"), [cell for cell in CELLS if cell.values[0] not in PERSONAL])
def test_the_saved_adapter_has_the_accuracy_of_the_run(run_five: RunFive, method: str, head: dict[str, Any]):
    finished = run_five(method, head)
    measures = evaluate_run(finished.folder)
    assert measures["accuracy"] == finished.summary["accuracy"]
    assert measures["num_examples"] == 41


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_round_changes_all_that_is_trained(run_five: RunFive, method: str):
    finished = run_five(method, AVERAGED)
    first, last = run_five(method, AVERAGED, **{"federation.rounds": 1}).state.tensors, finished.state.tensors
    unmoved = {name for name in last if name in first and torch.equal(first[name], last[name])}
    assert unmoved == (set(last) if method == "local-only" else set())
    kept = list((finished.folder / "clients").iterdir())
    does = METHODS[method].capabilities
    least = 1 if does.pools_data else 3
    assert (len(kept) >= least) is (does.trains == "experts" or does.personal)


@pytest.mark.parametrize("method", PERSONAL)
def test_without_a_global_model_accuracy_is_the_mean_over_the_clients(
    run_five: RunFive, compose_five: ComposeFive, method: str
):
    finished = run_five(method, AVERAGED)
    assert list(finished.summary["accuracy_by_round"]) == ["2"]
    experiment = compose_five(method, AVERAGED)
    members = {tier.name: sum(own == tier for own in experiment.budgets.values()) for tier in experiment.tiers}
    by_tier = finished.summary["accuracy_by_tier"]
    mean = sum(members[name] * by_tier[name] for name in members) / 5
    assert finished.summary["accuracy"] == pytest.approx(mean)
    assert "reweighted_personal_accuracy" not in finished.summary


@pytest.mark.parametrize("method", ["fft-moe", "flame", "flora"])
def test_clients_own_models_are_measured_when_asked_for_and_change_nothing(run_five: RunFive, method: str):
    plain = run_five(method, AVERAGED)
    measured = run_five(method, AVERAGED, **{"evaluation.personal": True, "evaluation.personal_examples": 23})
    personal = measured.summary["reweighted_personal_accuracy"]
    assert set(personal) == {"mean", "worst_decile", "global_mean", "global_worst_decile"}
    on_all = run_five(method, AVERAGED, **{"evaluation.personal": True, "evaluation.personal_examples": 1000})
    for key, value in plain.summary["reweighted_accuracy"].items():
        assert on_all.summary["reweighted_personal_accuracy"][f"global_{key}"] == value
    assert 0 <= personal["worst_decile"] <= personal["mean"] <= 1
    assert "reweighted_personal_accuracy" not in plain.summary
    for key in ("accuracy", "accuracy_by_tier", "reweighted_accuracy"):
        assert measured.summary[key] == plain.summary[key]
    assert measured.adapter == plain.adapter


@pytest.mark.parametrize(("method", "head"), CELLS)
def test_no_method_gives_a_tier_more_than_its_experts_cost(five_recipe: FiveRecipe, method: str, head: dict[str, Any]):
    costs = {cost.budget.name: cost for cost in forecast(parse_recipe(five_recipe(method, head), "tiny")).tiers}
    # An expert of 2 x 4 x 20 and a router row of 20; a shared one of 2 x 2 x 20; a head of 3 x 20 and 3.
    allowed = {"small": 1 * (2 * 180 + 80) + 63, "large": 2 * (5 * 180 + 80) + 63}
    for name, cost in costs.items():
        scales = len(cost.budget.blocks) if method == "flame" else 0  # a scalar per block, which is no expert's
        assert cost.trainable_parameters - scales <= allowed[name]
        assert cost.bytes_down > 4 * 63


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_a_fresh_adapter_adds_nothing_to_the_first_feature_statistics(five_recipe: FiveRecipe, method: str):
    """A client sends the same statistics, to the bit, without the adapter and with all of it."""
    experiment = compose(parse_recipe(five_recipe(method, CLOSED_FORM[method]), "test"))
    state = experiment.method.init(experiment.model)
    handler = build_client(client_spec(experiment, Kept()), experiment.model)
    sent, sums = [], []
    for at in (state, dataclasses.replace(state, round=1)):
        (plan,) = plan_sums(at, [0], experiment.largest, experiment.training, 3).clients
        sent.append(pack_plan(plan, experiment.method.download(at, plan)))
        sums.append(unpack_update(handler([sent[-1]])[0]).tensors)
    assert len(sent[0]) < len(sent[1]) or method == "head-only"
    for name, tensor in sums[0].items():
        assert torch.equal(tensor, sums[1][name]), name


@pytest.mark.parametrize("method", [method for method in EVERY_METHOD if method != "flora"])
def test_every_method_can_round_its_uploads(run_five: RunFive, method: str):
    rounded, plain = run_five(method, **{"federation.upload": "int8"}), run_five(method)
    last, before = rounded.rows[-1], plain.rows[-1]
    assert last["train_loss"] == pytest.approx(before["train_loss"], rel=0.05)
    if method == "local-only":  # which sends no tensor
        assert last["bytes_up"] == pytest.approx(before["bytes_up"], rel=0.01)
    else:
        assert last["bytes_up"] < before["bytes_up"]


@pytest.mark.one_rounding("worker processes")
@pytest.mark.slow
@pytest.mark.parametrize(("method", "head"), [("fft-moe", CLOSED), ("flora", AVERAGED), ("fedsa-lora", AVERAGED)])
def test_one_and_two_workers_give_the_same_bytes(run_five: RunFive, method: str, head: dict[str, Any]):
    one, two = (run_five(method, head, engine={"workers": workers}) for workers in (1, 2))
    # A checkpoint, an adapter, and what clients keep.
    assert check_same(one, two) >= (2 if method == "flora" else 5)


@pytest.mark.parametrize(("method", "head"), [("fft-moe", AVERAGED), ("fft-moe", FROZEN), ("fedit", AVERAGED)])
def test_what_is_cached_below_the_adapter_changes_nothing(
    run_five: RunFive, compose_five: ComposeFive, method: str, head: dict[str, Any], shrunk_head: None
):
    off = {"engine": {"prefix_cache": "off"}}
    for experiment, cached in ((compose_five(method), True), (compose_five(method, **off), False)):
        assert isinstance(experiment.train, WithPrefix) is isinstance(experiment.test, WithPrefix) is cached
    with plain_sgd():
        with_cache, without = (run_five(method, head, **FAR, **own) for own in ({}, off))
    for key in ("accuracy_by_round", "accuracy_by_tier", "bytes_down"):
        assert with_cache.summary[key] == pytest.approx(without.summary[key], abs=1.5 / 41)  # one test text
    check_up_to_rounding(with_cache.state.tensors, without.state.tensors, solved=head == FROZEN)


FAR = {"seed": 11, "federation.learning_rate": 2.0}  # steps of SGD that are large compared with rounding


def check_up_to_rounding(one: Tensors, two: Tensors, solved: bool) -> None:
    assert one.keys() == two.keys()
    for name in one:
        # Cached states come from batches of other widths: some 4,000 additions in float32 in another order, whose
        # rounding adds up like a random walk. A closed-form head may multiply it by its condition number.
        bound = additions(64, one[name], least=1.0)
        bound *= 22 if name.startswith("head.") and solved else 1
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=bound)


@pytest.mark.parametrize("key", ["learning_rate", "rows"])
def test_a_gradient_that_is_a_thousandth_too_long_and_other_rows_are_no_rounding(run_five: RunFive, key: str):
    change = {"federation.learning_rate": 2.002} if key == "learning_rate" else {"data.train_examples": 112}
    with plain_sgd():
        one, other = (run_five("fft-moe", AVERAGED, **FAR | own).state.tensors for own in ({}, change))
    with pytest.raises(AssertionError):
        check_up_to_rounding(one, other, solved=False)


@pytest.mark.parametrize("method", ["flora", "fedsa-lora"])
def test_the_command_line_shows_the_outcome_of_any_method(run_tiny: RunTiny, plan_tiny: PlanTiny, method: str):
    settings = (f"method={method}", "trackers=[]", "evaluation={baselines: off}")
    finished = run_tiny(*settings)
    assert finished.outcome.err == ""
    assert f"accuracy {finished.summary['accuracy']:.3f} on the whole test set" in finished.outcome.out
    assert "large" in plan_tiny(*settings).shown
