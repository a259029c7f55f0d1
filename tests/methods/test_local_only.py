"""Local only: each client trains its own model and sends no tensor, with any method inside."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from federation import answers, examples
from fftmoe.backbones import logits
from fftmoe.backbones.lora import lora_modules
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import token_mask
from fftmoe.data import training_batches
from fftmoe.head import make_head
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import Method
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.flora import FLora
from fftmoe.methods.local_only import LocalOnly
from fftmoe.records import pack_update
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from three_clients import BUDGETS, LARGE, SHAPE, SMALL, TRAINING, M, plan_of, train


def fft_moe(_model: Any) -> Method:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M)


def personal_router(_model: Any) -> Method:
    return FftMoe(budgets=BUDGETS, shape=SHAPE, num_experts=M, local=LocalSettings(router="personal"))


def fedit(model: Any) -> Method:
    return FedIt(BUDGETS, lora_modules(model))


def flora(model: Any) -> Method:
    return FLora(BUDGETS, lora_modules(model))


INNER = [(fft_moe, "moe"), (personal_router, "moe"), (fedit, "lora"), (flora, "lora")]


@pytest.fixture(params=INNER, ids=lambda pair: pair[0].__name__)
def local(request: pytest.FixtureRequest) -> tuple[Any, LocalOnly]:
    """A model, and the method on it with each inner method."""
    inner, kind = request.param
    model = request.getfixturevalue(f"{kind}_model")
    return model, LocalOnly(inner(model))


def test_local_only_sends_nothing_and_changes_nothing(local: tuple[Any, LocalOnly]):
    model, method = local
    assert method.capabilities.personal
    state = method.init(model)
    plan = plan_round(method, state, 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
    updates = [train(model, method, state, c)[0] for c in BUDGETS]
    for update in updates:
        assert (update.tensors, update.experts, update.shares, update.preferences) == ({}, {}, {}, {})
        assert len(pack_update(update)) <= len(pack_update(method.widest_update(plan.clients[0], {})))
    new, diagnostics = apply_round(method, state, plan, iter(updates))
    assert new.round == 1
    assert all(torch.equal(new.tensors[name], t) for name, t in state.tensors.items())
    assert diagnostics == {"train_loss": pytest.approx(np.mean([u.metrics["loss"] for u in updates]))}
    assert method.assign(new, [0, 2]) == {c: method.assign(state, sorted(BUDGETS))[c] for c in (0, 2)}


def test_a_second_local_round_goes_on_where_the_first_ended(local: tuple[Any, LocalOnly]):
    """Against the same batches in a row on a model that nothing is loaded into, with new optimisers half-way."""
    model, method = local
    state = method.init(model)
    _, kept = train(model, method, state, 1)
    second = dataclasses.replace(state, round=1)
    train(model, method, second, 0)  # another client in between
    _, kept = train(model, method, second, 1, kept)
    federated = answers(model)

    first_plan, second_plan = plan_of(method, state, 1), plan_of(method, second, 1)
    with method.inner.session(model, first_plan, method.download(state, first_plan), {}) as session:
        for plan in (first_plan, second_plan):
            balance: Any = getattr(session, "balance", None)
            for sums in (getattr(balance, "slots", {}), getattr(balance, "probs", {})):  # a new round counts anew
                for block in sums:
                    sums[block].zero_()
            optimizers = make_optimizers(session.parameters, plan.training)
            source = generator(plan.seed, "batches")
            for rows in training_batches(np.arange(23), 7, source, steps=3, lengths=examples().lengths):
                batch = examples().batch(rows)
                loss = make_head("averaged").loss(logits(model, batch), batch["labels"])
                loss = loss + session.penalty(token_mask(batch))
                loss.backward(inputs=list(session.parameters.values()))
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        torch.testing.assert_close(answers(model), federated)
        for name, parameter in session.parameters.items():
            torch.testing.assert_close(kept[name], parameter.detach())


def test_a_local_clients_own_model_is_what_it_trained(local: tuple[Any, LocalOnly]):
    model, method = local
    state = method.init(model)
    for client_id in BUDGETS:
        plan = plan_of(method, state, client_id)
        method.personalize(model, method.download(state, plan), plan, {})
        start = answers(model)
        _, kept = train(model, method, state, client_id)
        own = answers(model)
        method.install(model, state.tensors, LARGE)
        method.personalize(model, method.download(state, plan), plan, kept)
        assert torch.equal(answers(model), own)
        assert not torch.allclose(own, start)


def test_local_only_costs_what_its_inner_method_does(moe_model: Any):
    inner = fft_moe(moe_model)
    method = LocalOnly(inner)
    state = method.init(moe_model)
    plan = plan_of(method, state, 0)
    assert method.parameters(SMALL) == inner.parameters(SMALL)
    sent, inner_sent = method.download(state, plan), inner.download(state, plan)
    assert set(sent) == set(inner_sent)
    assert all(torch.equal(sent[name], t) for name, t in inner_sent.items())
