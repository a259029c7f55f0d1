"""Local training compared with an independent loop: with one client that holds all data it is ordinary training."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone
from fftmoe.client.training import Losses, factors_of_steps, make_optimizers, proximal, train
from fftmoe.client.update import token_mask, update_client
from fftmoe.data import TokenizedText, training_batches
from fftmoe.errors import RunError
from fftmoe.head import make_head
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, ClientUpdate, Tensors, Training, names
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import HIDDEN, token_examples
from plain_sgd import plain_sgd

M, H, N = 5, 3, 23
BLOCKS = (1, 2)
EVERYTHING = Budget("everything", 2, M, BLOCKS)
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, local_epochs=2)
EXAMPLES = token_examples(N, seed=1)
CONFIG = MoeAdapterConfig(num_experts=M, expert_dim=H, top_k=2, blocks="last-2", modules_to_save=["classifier"])
PLAIN = LocalSettings(balance="none", z_strength=0.0)


@pytest.fixture
def fresh(backbone_folder: Path) -> Callable[[], Any]:
    """Makes a model that has not been trained yet."""
    return lambda: attach_adapter(load_backbone(str(backbone_folder), num_labels=3), CONFIG)


def one_client(**fields: Any) -> FftMoe:
    return FftMoe(budgets={0: EVERYTHING}, shape=ExpertShape(HIDDEN, H), num_experts=M, local=PLAIN, **fields)


def updated(model: Any, training: Training) -> tuple[ClientUpdate, Tensors]:
    """One client's update from a fresh model, and the global tensors it started from."""
    moe = one_client()
    state = moe.init(model)
    plan = plan_round(moe, state, 1, [0], {0: EVERYTHING}, training, seed=5).clients[0]
    downloaded = moe.download(state, plan)
    update, _ = update_client(model, moe, make_head("averaged"), plan, downloaded, {}, EXAMPLES, np.arange(N))
    return update, state.tensors


@pytest.mark.parametrize("group_by_length", [True, False])
def test_one_client_with_all_data_and_all_experts_is_ordinary_fine_tuning(
    backbone_folder: Path, fresh: Callable[[], Any], group_by_length: bool
):
    model, moe = fresh(), one_client()
    state = moe.init(model)
    training = dataclasses.replace(TRAINING, group_by_length=group_by_length)
    plan = plan_round(moe, state, 1, [0], {0: EVERYTHING}, training, seed=5)
    downloaded = moe.download(state, plan.clients[0])
    update, _ = update_client(
        model, moe, make_head("averaged"), plan.clients[0], downloaded, {}, EXAMPLES, np.arange(N)
    )
    federated, _ = apply_round(moe, state, plan, [update])

    reference = get_peft_model(load_backbone(str(backbone_folder), num_labels=3), CONFIG)
    assert isinstance(reference, PeftModel)
    fine_tune(reference.eval(), plan.clients[0].seed, EXAMPLES.lengths if group_by_length else None)
    expected = {f"head.{n}": p for n, p in reference.get_submodule(HEAD).named_parameters()}
    for block, moe_layer in adapter.blocks(reference).items():
        expected |= {f"blocks.{block}.{n.removesuffix('.weight')}": p for n, p in moe_layer.named_parameters()}
    assert set(expected) == set(federated.tensors)
    for name, parameter in expected.items():
        # Not bit for bit: the server adds a difference, and g + (c - g) need not equal c in floats.
        torch.testing.assert_close(federated.tensors[name], parameter.detach())
        assert not torch.equal(parameter.detach(), state.tensors[name])


HEAD = "base_model.model.classifier.modules_to_save.default"


def fine_tune(model: PeftModel, seed: int, lengths: torch.Tensor | None) -> None:
    """What anyone would write with peft and torch: AdamW for the adapter, SGD for the head."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    head = [p for name, p in trained.items() if "classifier" in name]
    rest = [p for name, p in trained.items() if "classifier" not in name]
    assert len(head) == 2
    assert len(rest) == 3 * len(BLOCKS)
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)
    sgd = torch.optim.SGD(head, lr=0.5)
    for rows in training_batches(np.arange(N), 7, generator(seed, "batches"), epochs=2, lengths=lengths):
        batch = EXAMPLES.batch(rows)
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = F.cross_entropy(output, batch["labels"])
        loss.backward()
        for optimizer in (adamw, sgd):
            optimizer.step()
            optimizer.zero_grad()


class PaddedTexts(TokenizedText):
    """Every text padded to one length, the most that the model reads."""

    def batch(self, indices: Any) -> dict[str, torch.Tensor]:
        batch = super().batch(indices)
        for name in ("input_ids", "attention_mask"):
            batch[name] = F.pad(batch[name], (0, 17 - batch[name].shape[1]))
        return batch


def test_the_length_of_padding_changes_nothing(fresh: Callable[[], Any]):
    balanced = LocalSettings(balance_strength=0.5, z_strength=0.5)  # these losses count tokens
    moe = dataclasses.replace(one_client(), local=balanced)
    updates = []
    for examples in (
        EXAMPLES,
        PaddedTexts(**{field.name: getattr(EXAMPLES, field.name) for field in dataclasses.fields(EXAMPLES)}),
    ):
        model = fresh().double()
        state = moe.init(model)
        plan = plan_round(moe, state, 1, [0], {0: EVERYTHING}, TRAINING, seed=5).clients[0]
        sent = moe.download(state, plan)
        with plain_sgd():
            update, _ = update_client(model, moe, make_head("averaged"), plan, sent, {}, examples, np.arange(N))
        updates.append(update)
    assert_close_in_float64(*updates)


# How many additions lie between an input and a change of a parameter: in 3 blocks, forward and backward, two sums each
# over 20 features, 24 of the feed-forward network and 17 positions; then one over the 119 tokens of a batch; 8 steps.
# Each may cost one unit in the last place of numbers of order one.
ROUNDING = 8 * (3 * 2 * 2 * (20 + 24 + 17) + 119) * torch.finfo(torch.float64).eps


def assert_close_in_float64(found: ClientUpdate, expected: ClientUpdate) -> None:
    """Two updates by plain SGD, whose sums have other orders."""
    if expected.metrics:
        assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=ROUNDING)
    for name, tensor in expected.tensors.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(found.tensors[name], tensor, rtol=ROUNDING, atol=ROUNDING)
    assert float(expected.tensors["head.weight"].abs().max()) > 1e6 * ROUNDING


def test_without_a_proximal_term_nothing_is_computed_differently(fresh: Callable[[], Any]):
    plain, _ = updated(fresh(), TRAINING)
    zero, _ = updated(fresh(), dataclasses.replace(TRAINING, proximal=0.0))
    assert all(torch.equal(plain.tensors[name], zero.tensors[name]) for name in plain.tensors)
    # Far below the rounding of the loss, but not zero: the term itself is in place.
    tiny, _ = updated(fresh(), dataclasses.replace(TRAINING, proximal=1e-3))
    assert any(not torch.equal(plain.tensors[name], tiny.tensors[name]) for name in plain.tensors)


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_private_examples_leave_the_proximal_term_as_it_is(fresh: Callable[[], Any], mu: float):
    whole = dataclasses.replace(TRAINING, batch_size=N, local_epochs=None, local_steps=5, proximal=mu)
    # Every example is drawn in every step, and nothing is clipped or noisy: the result is the mean over the examples.
    private = dataclasses.replace(whole, example_clip=1e6, example_noise=0.0)
    with plain_sgd():
        plain, _ = updated(fresh().double(), whole)
        update, _ = updated(fresh().double(), private)
    # One example at a time in place of all together. The loss is not sent, as it would reveal more than the noise does.
    assert_close_in_float64(update, dataclasses.replace(plain, metrics={}))


def test_a_gradient_that_is_a_thousandth_too_long_is_no_rounding(fresh: Callable[[], Any]):
    with plain_sgd():
        plain, _ = updated(fresh().double(), TRAINING)
        longer, _ = updated(fresh().double(), dataclasses.replace(TRAINING, learning_rate=0.01001))
    with pytest.raises(AssertionError):
        assert_close_in_float64(longer, plain)


@pytest.mark.parametrize("part", ["blocks.1.up", "head.weight"])
def test_a_larger_proximal_term_moves_less(fresh: Callable[[], Any], part: str):
    moved = []
    for mu in (0.0, 0.1, 1.0):
        update, _ = updated(fresh(), dataclasses.replace(TRAINING, proximal=mu, local_epochs=5))
        moved.append(float(update.tensors[part].norm()))
    assert moved[0] > moved[1] > moved[2] > 0


def test_a_step_of_plain_sgd_is_as_long_as_the_bound_on_its_gradient(fresh: Callable[[], Any]):
    one_step = {"batch_size": N, "local_epochs": 1, "learning_rate": 0.5, "head_learning_rate": 0.5}
    with plain_sgd():
        update, _ = updated(fresh(), dataclasses.replace(TRAINING, **one_step, clip_gradients=0.02))
    moved = torch.cat([tensor.flatten() for tensor in update.tensors.values()])
    assert float(moved.norm()) == pytest.approx(0.5 * 0.02, rel=1e-4)


def test_the_proximal_term_is_half_mu_times_the_squared_distance():
    parameters = [torch.nn.Parameter(torch.tensor([3.0, 1.0])), torch.nn.Parameter(torch.tensor([[2.0]]))]
    start = [torch.tensor([1.0, 1.0]), torch.tensor([[5.0]])]
    # Squares 4 and 9: 0.4 / 2 * 13.
    value = proximal(parameters, start, 0.4)
    assert isinstance(value, torch.Tensor)
    assert value.item() == pytest.approx(2.6)
    assert proximal(parameters, [], 0.0) == 0.0


def test_the_head_is_trained_by_sgd_unless_adamw_is_asked_for():
    parameters = {"blocks.0.up": torch.nn.Parameter(torch.ones(2)), "head.bias": torch.nn.Parameter(torch.ones(3))}
    adapter_optimizer, head = make_optimizers(parameters, TRAINING)
    assert isinstance(adapter_optimizer, torch.optim.AdamW)
    assert isinstance(head, torch.optim.SGD)
    assert adapter_optimizer.param_groups[0]["lr"] == 0.01
    assert head.param_groups[0]["lr"] == 0.5
    assert [p.shape for p in head.param_groups[0]["params"]] == [(3,)]
    _, head = make_optimizers(parameters, dataclasses.replace(TRAINING, head_optimizer="adamw"))
    assert isinstance(head, torch.optim.AdamW)


@given(factors=st.lists(st.floats(0.01, 1), max_size=7).map(tuple), num_steps=st.integers(1, 23))
def test_the_rates_of_a_long_training_follow_its_factors_in_equal_parts(factors: tuple[float, ...], num_steps: int):
    """A loss with a slope of 1 everywhere: plain SGD moves by the rate of its step."""
    training = Training(3, learning_rate=0.1, head_learning_rate=0.5, rate_factors=factors)
    of_steps = factors_of_steps(training, num_steps)
    head = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    places = [0.0]
    loss = {names.HEAD_WEIGHT: head}, training, lambda _: Losses(head.sum(), head.sum())
    for _ in train(range(num_steps), *loss, factors=of_steps):
        places.append(-head.item())
    moved = [after - before for before, after in itertools.pairwise(places)]
    wanted = [factors[step * len(factors) // num_steps] if factors else 1.0 for step in range(num_steps)]
    assert moved == pytest.approx([0.5 * factor for factor in wanted], rel=1e-9)  # float64, at most 23 additions
    parts = [wanted.count(factor) for factor in factors] if len(set(factors)) == len(factors) else []
    assert not parts or max(parts) - min(parts) <= 1


def test_an_update_is_a_function_of_its_inputs(fresh: Callable[[], Any]):
    one, _ = updated(fresh(), TRAINING)
    two, _ = updated(fresh(), TRAINING)
    assert one.metrics == two.metrics
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_global_randomness_is_neither_read_nor_changed(fresh: Callable[[], Any]):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, _ = updated(fresh(), TRAINING)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two, _ = updated(fresh(), TRAINING)
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_training_lowers_the_loss(fresh: Callable[[], Any]):
    losses = []
    for epochs in (1, 9):
        update, _ = updated(fresh(), dataclasses.replace(TRAINING, local_epochs=epochs))
        losses.append(update.metrics["loss"])
    assert losses[1] < 0.9 * losses[0]


def test_a_measurement_is_taken_of_the_trained_model_and_sent_along(fresh: Callable[[], Any]):
    model, moe = fresh(), one_client()
    state = moe.init(model)
    plan = plan_round(moe, state, 1, [0], {0: EVERYTHING}, TRAINING, seed=5).clients[0]
    seen: list[torch.Tensor] = []

    def measure(trained: Any) -> dict[str, float]:
        seen.append(adapter.blocks(trained)[1].up.detach().clone())
        return {"mine": 0.25}

    update, _ = update_client(
        model, moe, make_head("averaged"), plan, moe.download(state, plan), {}, EXAMPLES, np.arange(N), measure
    )
    assert update.metrics["mine"] == 0.25
    assert "loss" in update.metrics
    assert update.num_examples == N
    assert not torch.equal(seen[0], state.tensors["blocks.1.up"])


def test_a_token_mask_is_flat_and_false_on_padding():
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    mask = token_mask(batch)
    assert mask is not None
    assert mask.tolist() == [True, True, False, True, False, False]
    assert token_mask({"pixel_values": torch.zeros(2, 3)}) is None


def test_a_loss_of_nan_ends_the_run_and_names_the_client(fresh: Callable[[], Any]):
    diverging = dataclasses.replace(TRAINING, head_learning_rate=1e38)
    with pytest.raises(RunError, match=r"client 0: the loss became (nan|inf) in step \d+ of round 1; lower "):
        updated(fresh(), diverging)


def test_an_expert_that_got_tokens_but_no_gradient_is_not_sent(backbone_folder: Path):
    """The head of `native` pooling reads one token of the last block; the other tokens' experts learn nothing."""
    one_token = {name: getattr(EXAMPLES, name) for name in ("input_ids", "offsets", "labels", "pad_id")}
    examples = type(EXAMPLES)(**one_token).select([0])
    budget = Budget("everything", 1, M, BLOCKS)
    moe = FftMoe(budgets={0: budget}, shape=ExpertShape(HIDDEN, H), num_experts=M, local=PLAIN)
    model = attach_adapter(load_backbone(str(backbone_folder), num_labels=3, pooling="native"), CONFIG)
    plan = plan_round(moe, moe.init(model), 1, [0], {0: budget}, TRAINING, seed=5).clients[0]
    downloaded = moe.download(moe.init(model), plan)
    update, _ = update_client(model, moe, make_head("averaged"), plan, downloaded, {}, examples, np.arange(1))
    last = max(BLOCKS)
    assert len(update.experts[last]) == 1  # the one example's first token uses one expert
    assert len(update.experts[min(BLOCKS)]) > 1  # below, every token reaches the head through attention
    assert all(t.flatten(1).any(1).all() for name, t in update.tensors.items() if name.startswith(f"blocks.{last}.up"))
