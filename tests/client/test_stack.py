"""Clients trained in one batch get the updates and states of clients trained one after another, up to rounding.

Three facts together say so on any processor. Gradients are compared through steps of plain SGD, which are linear in
them, in float64, where rounding is ten orders of magnitude below any fault. AdamW divides a gradient by its own size,
so it would turn a difference in the last bits of a small gradient into a large one; it is compared with itself, given
the same gradients. And a whole run, with AdamW and in float32, has the same losses.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone
from fftmoe.client.stack import StackedRows, stacked_rows, update_stack
from fftmoe.client.training import plain_gradients, train
from fftmoe.client.update import update_client
from fftmoe.config import Recipe, parse_recipe
from fftmoe.engines.base import Quota, Reply
from fftmoe.errors import InputError, RunError
from fftmoe.head import make_head
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.head_only import HeadOnly
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    RoundPlan,
    Tensors,
    Training,
    made_on,
    pack_update,
    unpack_plan,
)
from fftmoe.rng import generator
from fftmoe.rounds import exchange as exchange_module
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.expectation import Expectation
from fftmoe.server.plan import group_clients, plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.run import run
from fftmoe.setup.stacking import clients_per_batch
from models import FAMILIES, HIDDEN, images, token_examples
from plain_sgd import plain_sgd

M, H, C = 7, 3, 5
BUDGET = Budget("same", 2, 3, (1, 2))
TRAINING = Training(batch_size=3, learning_rate=0.3, head_learning_rate=0.5, local_steps=4)
EPOCHS = dataclasses.replace(TRAINING, local_steps=None, local_epochs=2)
# Unlike sizes, one smaller than a batch: with epochs the clients have unlike numbers of steps.
SIZES = (5, 2, 11, 3, 7)
EXAMPLES = token_examples(sum(SIZES), seed=1)
ROWS = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


def bert(backbone_folder: Path, **config: Any) -> Any:
    """In float64, so that only the algorithm can differ; experts that have been trained a little, so that they act."""
    settings: dict[str, Any] = {"num_experts": M, "expert_dim": H, "top_k": 1, "blocks": "last-2", **config}
    model = attach_adapter(load_backbone(str(backbone_folder), num_labels=3), MoeAdapterConfig(**settings))
    model = model.double()
    for block, moe in adapter.blocks(model).items():
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down"))
    return model


@pytest.fixture
def make(backbone_folder: Path) -> Callable[..., Any]:
    return lambda **config: bert(backbone_folder, **config)


def method(budget: Budget = BUDGET, **fields: Any) -> FftMoe:
    budgets = dict.fromkeys(range(C), budget)
    return FftMoe(budgets=budgets, shape=ExpertShape(HIDDEN, H), num_experts=M, **fields)


def both_ways(
    model: Any, moe: FftMoe, training: Training, head: str = "averaged", examples: Any = EXAMPLES
) -> tuple[list[tuple[ClientUpdate, Tensors]], list[tuple[ClientUpdate, Tensors]]]:
    """Two rounds, so that clients have a state in the second: results of single clients, and of all in one batch."""
    with plain_sgd():
        return two_rounds(model, moe, training, head, examples)


def two_rounds(
    model: Any, moe: FftMoe, training: Training, head: str, examples: Any
) -> tuple[list[tuple[ClientUpdate, Tensors]], list[tuple[ClientUpdate, Tensors]]]:
    state, results = moe.init(model), []
    kept: list[Tensors] = [{} for _ in range(C)]
    for t in (1, 2):
        plan = plan_round(moe, state, t, range(C), moe.budgets, training, seed=5).clients
        sent = [moe.download(state, each) for each in plan]
        arguments = (model, moe, make_head(head))
        single = [
            update_client(*arguments, one, tensors, own, examples, rows)
            for one, tensors, own, rows in zip(plan, sent, kept, ROWS, strict=True)
        ]
        stacked = update_stack(*arguments, plan, sent, kept, examples, ROWS)
        results.append((single, stacked))
        state, _ = moe.aggregate(state, [update for update, _ in single])
        kept = [own for _, own in single]
    return results[1]


# How many additions lie between an input and a change of a parameter: in 3 blocks, forward and backward, two sums each
# over 20 features, 24 of the feed-forward network and 11 positions; then one over the 33 tokens of a batch; 8 steps.
TERMS = 8 * (3 * 2 * 2 * (20 + 24 + 11) + 33)
ROUNDING = TERMS * torch.finfo(torch.float64).eps  # each may cost one unit in the last place: 1.2e-12 of order one


def assert_same(pairs: tuple[list[tuple[ClientUpdate, Tensors]], list[tuple[ClientUpdate, Tensors]]]) -> None:
    """Parameters and activations are of order one here; what is sent in float32 is rounded once more."""
    for (single, own), (stacked, kept) in zip(*pairs, strict=True):
        plain = {"tensors": {}, "shares": {}, "metrics": {}}
        assert dataclasses.replace(stacked, **plain) == dataclasses.replace(single, **plain)
        assert stacked.metrics == pytest.approx(single.metrics, rel=ROUNDING)
        for block, shares in single.shares.items():
            assert stacked.shares[block] == pytest.approx(shares, rel=ROUNDING)
        for found, expected in ((stacked.tensors, single.tensors), (kept, own)):
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                bound = max(ROUNDING, torch.finfo(tensor.dtype).eps)
                torch.testing.assert_close(found[name], tensor, rtol=bound, atol=bound, msg=name)
        # A fault of a thousandth in a gradient is a thousand times what rounding may do.
        assert any(t.abs().max() > 1e6 * ROUNDING for name, t in single.tensors.items() if name.endswith(".up"))


@pytest.mark.parametrize("training", [TRAINING, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize("compute", ["loop", "wide"])
def test_each_client_gets_its_own_update(make: Callable[..., Any], compute: str, training: Training):
    """`grouped` takes no float64; `stacked` is tested with it apart."""
    assert_same(both_ways(make(compute=compute), method(), training))


def stretched(loss_of: Any, batch: Any, parameters: Any, pull: Any) -> torch.Tensor:
    """Client 3's gradient, one thousandth too long."""
    loss = plain_gradients(loss_of, batch, parameters, pull)
    for parameter in parameters:
        parameter.grad[3] *= 1.001
    return loss


def swapped(batches: Any) -> Any:
    """Clients 0 and 2 have each other's first row in every step."""
    for rows_CB, real_CB in stacked_rows(batches):
        rows_CB[[0, 2], 0] = rows_CB[[2, 0], 0]
        yield StackedRows(rows_CB, real_CB)


@pytest.mark.parametrize("fault", [("train", partial(train, make_gradients=stretched)), ("stacked_rows", swapped)])
def test_a_real_fault_is_no_rounding(make: Callable[..., Any], fault: tuple[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"fftmoe.client.stack.{fault[0]}", fault[1])
    pairs = both_ways(make(), method(), TRAINING)
    with pytest.raises(AssertionError):
        assert_same(pairs)


@pytest.mark.parametrize(
    "config",
    [
        {"shared_rank": 2},
        {"shared_rank": 2, "shared_targets": "all-linear"},
        {"shared_dim": 3},
        {"gates": "renormalized", "activation": "relu"},
        {"scale": 0.25},
    ],
    ids=str,
)
def test_other_parts_of_an_adapter_are_separate_for_each_client(make: Callable[..., Any], config: dict[str, Any]):
    assert_same(both_ways(make(**config), method(), EPOCHS))


@pytest.mark.parametrize("router", ["shared", "personal", "shared+personal"])
@pytest.mark.parametrize("balance", ["heterogeneity-aware", "switch", "none"])
def test_balance_and_router_modes(make: Callable[..., Any], balance: str, router: str):
    local = LocalSettings(balance=balance, balance_strength=0.3, router=router)
    assert_same(both_ways(make(), method(local=local), TRAINING))


@pytest.mark.parametrize("change", [{}, {"train_head": False}, {"proximal": 0.7}, {"clip_gradients": 0.1}], ids=str)
@pytest.mark.parametrize("head", ["averaged", "one-vs-all", "closed-form"])
def test_heads_and_the_proximal_term(make: Callable[..., Any], head: str, change: dict[str, Any]):
    # The closed form's loss is ten squares; it diverges at the others' rates.
    rates = {"learning_rate": 0.01, "head_learning_rate": 0.01} if head == "closed-form" else {}
    training = dataclasses.replace(EPOCHS, **rates, **change)
    assert_same(both_ways(make(), method(), training, head))


def test_a_block_outside_the_budget_stays_empty(make: Callable[..., Any]):
    narrow = dataclasses.replace(BUDGET, blocks=(2,))
    assert_same(both_ways(make(shared_rank=2, shared_dim=3), method(narrow), TRAINING))


def test_after_a_batch_the_model_trains_one_client_again(make: Callable[..., Any]):
    model, moe = make(shared_rank=2, shared_dim=3), method()
    state = moe.init(model)
    plan = plan_round(moe, state, 1, range(C), moe.budgets, TRAINING, seed=5).clients
    sent = [moe.download(state, each) for each in plan]
    first, _ = update_client(model, moe, make_head("averaged"), plan[3], sent[3], {}, EXAMPLES, ROWS[3])
    update_stack(model, moe, make_head("averaged"), plan, sent, [{}] * C, EXAMPLES, ROWS)
    again, _ = update_client(model, moe, make_head("averaged"), plan[3], sent[3], {}, EXAMPLES, ROWS[3])
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_of_images_every_patch_is_a_token(backbone_folder: Path):
    """The batch has no attention mask, and some clients have fewer examples than a batch."""
    config = MoeAdapterConfig(num_experts=M, expert_dim=H, top_k=1, blocks="last-2")
    model = attach_adapter(FAMILIES["vit"].make(), config).double()
    for block, moe in adapter.blocks(model).items():
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down"))
    assert_same(both_ways(model, method(), EPOCHS, examples=Pictures(sum(SIZES))))


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Random images, float64."""

    num: int

    def __len__(self) -> int:
        return self.num

    @property
    def labels(self) -> torch.Tensor:
        return torch.arange(self.num) % 3

    @property
    def lengths(self) -> torch.Tensor:
        return torch.ones(self.num, dtype=torch.int64)

    def batch(self, rows: Any, /) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(rows)
        shape = images()["pixel_values"].shape[1:]
        pixels = torch.randn(self.num, *shape, generator=generator(3, "pixels"), dtype=torch.float64)
        return {"pixel_values": pixels[rows], "labels": self.labels[rows]}


def test_a_loss_of_nan_names_its_client(make: Callable[..., Any]):
    model, moe = make(), method()
    state = moe.init(model)
    plan = list(plan_round(moe, state, 1, range(C), moe.budgets, TRAINING, seed=5).clients)
    sent = [moe.download(state, each) for each in plan]
    sent[2] = {**sent[2], "head.bias": torch.full_like(sent[2]["head.bias"], float("inf"))}
    with pytest.raises(RunError, match=r"^client 2: the loss became nan in step 1 of round 1"):
        update_stack(model, moe, make_head("averaged"), plan, sent, [{}] * C, EXAMPLES, ROWS)


# Who trains together


def plans(budgets: dict[int, Budget], training: Training = TRAINING, task: str = "train") -> RoundPlan:
    return RoundPlan(1, tuple(ClientPlan(1, c, 0, budget, {}, training, task) for c, budget in budgets.items()))


@given(tiers=st.lists(st.integers(0, 2), min_size=1, max_size=23), at_once=st.integers(1, 7))
def test_clients_of_one_tier_share_groups_and_each_trains_once(tiers: list[int], at_once: int):
    names = {c: dataclasses.replace(BUDGET, name=str(tier)) for c, tier in enumerate(tiers)}
    groups = group_clients(plans(names).clients, at_once)
    assert sorted(plan.client_id for group in groups for plan in group) == list(names)
    for group in groups:
        assert len(group) <= at_once
        assert len({plan.budget for plan in group}) == 1
        assert [plan.client_id for plan in group] == sorted(plan.client_id for plan in group)
    sizes = {tier: {len(group) for group in groups if group[0].budget.name == tier} for tier in map(str, tiers)}
    assert all(max(of_tier) - min(of_tier) <= 1 for of_tier in sizes.values())
    # As few groups as the tiers allow.
    assert len(groups) == sum(-(-tiers.count(tier) // at_once) for tier in set(tiers))


@given(tiers=st.lists(st.integers(0, 2), min_size=1, max_size=23), at_once=st.integers(1, 5), limit=st.integers(1, 7))
def test_updates_come_in_order_whatever_the_groups_and_few_messages_wait(tiers: list[int], at_once: int, limit: int):
    waiting = []

    class Echo:
        def run_clients(self, groups: Any, quota: Quota) -> Any:
            assert quota.missing is None
            waiting.append(sum(map(len, groups)))
            for group in groups:
                assert len(group) <= at_once
                for client_id, message in group:
                    plan, _ = unpack_plan(message)
                    assert plan.client_id == client_id
                    update = ClientUpdate(1, client_id, 5, {}, made_on=made_on("own", plan.base))
                    yield Reply(client_id, pack_update(update), 0.5)

    cohort = plans({c: dataclasses.replace(BUDGET, name=str(tier)) for c, tier in enumerate(tiers)})
    counted = Ledger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange_module, "IN_FLIGHT", limit)
        expect = partial(Expectation.of, method=HeadOnly(), backbone="own")
        updates = Exchange(cast(Any, Echo()), expect, counted, at_once).updates(cohort, lambda plan: {})
        assert [update.client_id for update in updates] == list(range(len(tiers)))
    assert max(waiting) <= limit
    assert counted.seconds == 0.5 * len(tiers)
    assert sum(tier["client_rounds"] for tier in counted.per_client_round().values()) == len(tiers)


@pytest.mark.parametrize("task", ["alone", "sums"])
def test_only_training_shares_batches(task: str):
    groups = group_clients(plans(dict.fromkeys(range(C), BUDGET), task=task).clients, most=3)
    assert [len(group) for group in groups] == [1] * C


def settings(recipe: dict[str, Any], **engine: Any) -> Recipe:
    return parse_recipe({**recipe, "engine": {**recipe["engine"], **engine}, "trackers": []}, "test")


def test_a_run_with_several_clients_in_a_batch_is_the_same_run(recipe_values: dict[str, Any], tmp_path: Path):
    one = run(settings(recipe_values, clients_per_batch=1), tmp_path / "one").summary
    several = run(settings(recipe_values, clients_per_batch=3), tmp_path / "several").summary
    losses = [
        [json.loads(line).get("train_loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "several")
    ]
    # Rounding in float32 carried through the rounds; the golden losses allow the same.
    assert losses[1][1:] == pytest.approx(losses[0][1:], rel=1e-4)
    # Headers hold losses and shares as decimal numbers, which have a digit more or less.
    assert several["bytes_up"] == pytest.approx(one["bytes_up"], rel=1e-3)
    assert several["per_client_round_by_tier"].keys() == one["per_client_round_by_tier"].keys()


@pytest.mark.slow
@pytest.mark.one_rounding("worker processes")
def test_the_number_of_workers_changes_nothing(recipe_values: dict[str, Any], tmp_path: Path):
    for workers in (1, 2):
        run(settings(recipe_values, clients_per_batch=3, workers=workers), tmp_path / str(workers))
    one, two = (max((tmp_path / str(w) / "checkpoints").glob("*.safetensors")).read_bytes() for w in (1, 2))
    assert one == two


def test_a_method_that_cannot_share_batches_is_refused_with_the_remedy(recipe_values: dict[str, Any], tmp_path: Path):
    recipe = settings({**recipe_values, "method": "fedit"}, clients_per_batch=3)
    with pytest.raises(
        InputError, match=r"engine\.clients_per_batch=3: method fedit trains one client at a time; set it"
    ):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_auto_takes_several_where_batches_are_small_and_one_where_they_are_not(recipe_values: dict[str, Any]):
    small = compose(settings(recipe_values, clients_per_batch="auto"))
    assert 1 < clients_per_batch(small) <= recipe_values["federation"]["clients_per_round"]
    large = dataclasses.replace(small, mean_tokens=1000.0)
    assert clients_per_batch(large) == 1
    lora = compose(settings({**recipe_values, "method": "fedit"}, clients_per_batch="auto"))
    assert clients_per_batch(lora) == 1
