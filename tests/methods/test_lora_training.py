"""Laws of every LoRA method on a tiny BERT with peft's LoRA on two modules of two blocks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from federation import answers
from fftmoe.adapter.low_rank import block_of_module
from fftmoe.backbones.lora import lora_modules
from fftmoe.errors import RunError
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.lora import LoraMethod
from fftmoe.records import Tensors, pack_update
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from lora_rounds import (
    BUDGETS,
    CLASSES,
    LARGE,
    NARROW,
    SMALL,
    TRAINING,
    after_a_round,
    check_saved,
    every_method,
    merged_round,
    method_on,
    plan_of,
    run_round,
    train,
)


@every_method
def test_nothing_depends_on_the_process_that_holds_the_model(
    fresh_lora_model: Callable[[], Any], kind: type[LoraMethod]
):
    """peft draws a model's A from global randomness, which no other process shares."""
    updates, outputs = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = fresh_lora_model()
        method, state = after_a_round(model, kind)
        method.install(model, state.tensors, LARGE)
        outputs.append(answers(model))
        updates.append(train(model, method, state, 1)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(updates[0].tensors[name], t) for name, t in updates[1].tensors.items())


@every_method
def test_a_clients_update_does_not_depend_on_who_trained_before_it(lora_model: Any, kind: type[LoraMethod]):
    method, state = after_a_round(lora_model, kind)
    one, _ = train(lora_model, method, state, 1)
    train(lora_model, method, state, 3)
    method.install(lora_model, state.tensors, LARGE)
    again, _ = train(lora_model, method, state, 1)
    assert all(torch.equal(one.tensors[name], t) for name, t in again.tensors.items())
    assert all(t.any() for t in one.tensors.values())


@every_method
def test_the_frozen_weights_are_restored_to_the_bit(lora_model: Any, kind: type[LoraMethod]):
    frozen = {name: p.clone() for name, p in lora_model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 20
    method, state = after_a_round(lora_model, kind)
    state = run_round(lora_model, method, state, BUDGETS)
    method.install(lora_model, state.tensors, LARGE)
    with pytest.raises(RunError):
        train(lora_model, method, state, 1, head_learning_rate=1e38)
    now = dict(lora_model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


@every_method
def test_an_update_is_never_wider_than_forecast(lora_model: Any, kind: type[LoraMethod]):
    method, state = after_a_round(lora_model, kind)
    for client_id in BUDGETS:
        plan = plan_of(method, state, client_id)
        widest = method.widest_update(plan, method.download(state, plan))
        update, _ = train(lora_model, method, state, client_id)
        assert {n: t.shape for n, t in widest.tensors.items()} == {n: t.shape for n, t in update.tensors.items()}
        assert len(pack_update(update)) <= len(pack_update(widest))


@every_method
def test_a_head_that_clients_do_not_train_stays_and_is_not_sent(lora_model: Any, kind: type[LoraMethod]):
    method = method_on(lora_model, kind)
    state = method.init(lora_model)
    update, _ = train(lora_model, method, state, 1, train_head=False)
    assert not any(name.startswith("head.") for name in update.tensors)
    assert any(name.startswith("lora.") for name in update.tensors)
    plan = plan_of(method, state, 1, dataclasses.replace(TRAINING, train_head=False))
    assert not any(n.startswith("head.") for n in method.widest_update(plan, method.download(state, plan)).tensors)
    assert torch.equal(merged_round(method, state, [update]).tensors["head.weight"], state.tensors["head.weight"])


@every_method
def test_a_saved_adapter_opens_with_peft_and_answers_alike(
    lora_model: Any, kind: type[LoraMethod], backbone_folder: Path, tmp_path: Path
):
    method, state = after_a_round(lora_model, kind)
    method.install(lora_model, state.tensors, LARGE)
    check_saved(lora_model, backbone_folder, tmp_path)


@every_method
def test_a_tier_without_a_block_leaves_it_as_the_backbone(lora_model: Any, kind: type[LoraMethod]):
    method, state = after_a_round(lora_model, kind)
    method.install(lora_model, state.tensors, NARROW)
    for path in lora_modules(lora_model):
        rank = lora_model.base_model.model.get_submodule(path).lora_A["default"].weight.shape[0]
        assert (rank == 0) is (block_of_module(path) == 1)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not FedSaLora])
def test_a_method_without_personal_parts_personalizes_as_it_installs(lora_model: Any, kind: type[LoraMethod]):
    method, state = after_a_round(lora_model, kind)
    assert not method.capabilities.personal
    plan = plan_of(method, state, 0)
    method.personalize(lora_model, method.download(state, plan), plan, {})
    personal = answers(lora_model)
    method.install(lora_model, state.tensors, SMALL)
    assert torch.equal(answers(lora_model), personal)


@every_method
def test_rounds_lower_the_loss(lora_model: Any, kind: type[LoraMethod]):
    method = method_on(lora_model, kind)
    state = method.init(lora_model)
    kept: dict[int, Tensors] = {}
    losses = []
    for _ in range(4):
        plan = plan_round(method, state, state.round + 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
        updates = []
        for client_id in BUDGETS:
            update, kept[client_id] = train(lora_model, method, state, client_id, kept.get(client_id))
            updates.append(update)
        state, diagnostics = apply_round(method, state, plan, updates)
        losses.append(diagnostics["train_loss"])
    assert losses[-1] < losses[0]
