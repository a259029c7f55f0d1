"""Head only: the method trains and sends the head, whatever adapter is attached."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from federation import answers
from fftmoe.backbones import head_parameters
from fftmoe.errors import InputError
from fftmoe.methods.head_only import HeadOnly
from fftmoe.records import pack_update
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from three_clients import BUDGETS, LARGE, SMALL, TRAINING, plan_of, train


@pytest.mark.parametrize("kind", ["moe", "lora"])
def test_head_only_trains_and_sends_the_head_whatever_is_attached(kind: str, request: pytest.FixtureRequest):
    model, method = request.getfixturevalue(f"{kind}_model"), HeadOnly()
    state = method.init(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert set(state.tensors) == {"head.weight", "head.bias"}
    updates = [train(model, method, state, c)[0] for c in BUDGETS]
    updates[1] = dataclasses.replace(updates[1], num_examples=100)
    plan = plan_round(method, state, 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
    new, diagnostics = apply_round(method, state, plan, iter(updates))
    mean = (23 * updates[0].tensors["head.weight"] + 100 * updates[1].tensors["head.weight"]) / 146
    mean += 23 * updates[2].tensors["head.weight"] / 146
    torch.testing.assert_close(new.tensors["head.weight"], state.tensors["head.weight"] + mean)
    assert diagnostics == {"train_loss": pytest.approx(np.mean([u.metrics["loss"] for u in updates]))}
    now = dict(model.named_parameters())
    assert {n for n, p in before.items() if not torch.equal(p, now[n])} == {n for n in now if "modules_to_save" in n}
    method.install(model, new.tensors, SMALL)
    assert torch.equal(head_parameters(model)["weight"].detach(), new.tensors["head.weight"])
    installed = answers(model)
    method.personalize(model, method.download(new, plan_of(method, new, 2)), plan_of(method, new, 2), {})
    assert torch.equal(answers(model), installed)
    assert not method.capabilities.personal
    assert method.parameters(LARGE) == 0
    assert all(not experts for experts in method.assign(state, [0, 1]).values())


def test_head_only_forecasts_the_head(lora_model: Any):
    method = HeadOnly()
    state = method.init(lora_model)
    plan = plan_of(method, state, 0)
    widest = method.widest_update(plan, method.download(state, plan))
    update, _ = train(lora_model, method, state, 0)
    assert {n: t.shape for n, t in widest.tensors.items()} == {n: t.shape for n, t in update.tensors.items()}
    assert len(pack_update(update)) <= len(pack_update(widest))


def test_head_only_without_a_head_is_refused():
    with pytest.raises(InputError, match="this model has none"):
        HeadOnly().init(torch.nn.Linear(2, 3))


def test_head_only_with_a_solved_head_trains_and_sends_nothing(lora_model: Any):
    method = HeadOnly()
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 0, train_head=False)
    assert (update.tensors, kept, update.metrics) == ({}, {}, {})
    new, diagnostics = method.aggregate(state, [update])
    assert diagnostics["train_loss"] == 0.0
    assert all(torch.equal(new.tensors[name], tensor) for name, tensor in state.tensors.items())
