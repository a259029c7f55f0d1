"""Methods that average factors, against their definitions and against ordinary fine-tuning with peft and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from peft import PeftModel
from torch import nn

from federation import examples
from fftmoe.backbones.lora import load_factors, lora_modules
from fftmoe.client.update import update_client
from fftmoe.data import training_batches
from fftmoe.head import make_head
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.ffa_lora import FfaLora
from fftmoe.methods.lora import LoraMethod
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from lora_rounds import (
    BUDGETS,
    CLASSES,
    MEDIUM,
    MODULES,
    ONE,
    SMALL,
    TRAINING,
    merged_round,
    method_on,
    random_updates,
    seeds,
    state_of,
    train,
)

AVERAGE = (FedIt, FfaLora, FedSaLora)


@pytest.mark.parametrize("kind", AVERAGE)
@given(seed=seeds)
@settings(max_examples=10)
def test_each_factor_that_is_sent_is_averaged_by_examples(kind: type[LoraMethod], seed: int):
    method = kind(BUDGETS, MODULES)
    state = state_of(method)
    updates = random_updates(method, state, seed)
    new = merged_round(method, state, updates)
    for name, old in state.tensors.items():
        senders = [u for u in updates if name in u.tensors]
        assert [u.client_id for u in senders] == ([0, 1, 2] if ONE in name else [0, 1, 2, 3])
        weights = np.array([u.num_examples for u in senders], dtype=float)
        weights /= weights.sum()
        assert sum(weights) == pytest.approx(1.0)
        values = [(old.double() + u.tensors[name].double()).numpy() for u in senders]
        np.testing.assert_allclose(new.tensors[name], np.tensordot(weights, values, 1), atol=1e-6)


@pytest.mark.parametrize("kind", AVERAGE)
def test_a_method_that_averages_factors_gives_every_client_the_smallest_rank(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    assert {method.rank(budget) for budget in BUDGETS.values()} == {2}
    assert {t.shape[0] for name, t in method.init(nn.Module()).tensors.items() if name.endswith(".A")} <= {2}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in AVERAGE])
def test_another_method_gives_each_client_the_rank_of_its_budget(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    assert [method.rank(budget) for budget in BUDGETS.values()] == [2, 3, 5, 3]


@given(seed=seeds)
@settings(max_examples=10)
def test_ffa_lora_averages_products_exactly(seed: int):
    method = FfaLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = random_updates(method, state, seed)
    new = merged_round(method, state, updates)
    assert not any(name.endswith(".A") for name in (*new.tensors, *updates[0].tensors))
    for path in MODULES:
        holders = [u for u in updates if f"lora.{path}.B" in u.tensors]
        total = sum(u.num_examples for u in holders)
        a = method.start({}, SMALL, round=1)[path][0].double()
        old = state.tensors[f"lora.{path}.B"].double()
        products = sum(u.num_examples / total * (old + u.tensors[f"lora.{path}.B"].double()) @ a for u in holders)
        # The server's B is float32.
        torch.testing.assert_close(new.tensors[f"lora.{path}.B"].double() @ a, products, rtol=1e-6, atol=1e-6)


def test_ffa_lora_trains_only_b_on_the_a_of_the_seed(lora_model: Any):
    method = method_on(lora_model, FfaLora, seed=3)
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 1)
    assert kept == {}
    assert {name for name in update.tensors if name.startswith("lora.")} == {
        f"lora.{p}.B" for p in lora_modules(lora_model)
    }
    for path in lora_modules(lora_model):
        frozen = lora_model.base_model.model.get_submodule(path).lora_A["default"].weight.detach()
        assert torch.equal(frozen, method.start({}, MEDIUM, round=2)[path][0])


def test_one_client_with_all_data_is_ordinary_lora_fine_tuning(fresh_lora_model: Callable[[], Any]):
    budgets = {0: MEDIUM}
    model = fresh_lora_model()
    method = FedIt(budgets, lora_modules(model))
    state = method.init(model)
    plan = plan_round(method, state, 1, [0], budgets, TRAINING, seed=5)
    download = method.download(state, plan.clients[0])
    update, _ = update_client(
        model, method, make_head("averaged"), plan.clients[0], download, {}, examples(), np.arange(23)
    )
    federated, _ = apply_round(method, state, plan, [update])

    reference: PeftModel = fresh_lora_model()
    load_factors(reference, method.start(state.tensors, MEDIUM, round=1))
    fine_tune(reference, plan.clients[0].seed)
    trained = {n: p for n, p in reference.named_parameters() if "lora_" in n or "modules_to_save" in n}
    assert len(trained) == len(federated.tensors) == 10
    for name, parameter in trained.items():
        short = name.removeprefix("base_model.model.").replace(".default.weight", "")
        short = "lora." + short.replace("lora_", "") if "lora_" in short else f"head.{name.rpartition('.')[2]}"
        assert not torch.equal(parameter.detach(), state.tensors[short])
        torch.testing.assert_close(federated.tensors[short], parameter.detach())


def fine_tune(model: PeftModel, seed: int) -> None:
    """What anyone would write with peft and torch: AdamW for LoRA, SGD for the head."""
    lora = [p for name, p in model.named_parameters() if "lora_" in name]
    head = [p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    optimizers = [torch.optim.AdamW(lora, lr=0.02, weight_decay=0.0, fused=True), torch.optim.SGD(head, lr=0.5)]
    for rows in training_batches(np.arange(23), 7, generator(seed, "batches"), steps=3, lengths=examples().lengths):
        batch = examples().batch(rows)
        loss = F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
