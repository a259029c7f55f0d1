"""FedSA-LoRA, which shares A and keeps each client's B (and, if asked, its head) on the client."""

from typing import Any

import torch

from federation import answers
from fftmoe.backbones.lora import lora_modules
from fftmoe.methods.fedsa_lora import FedSaLora
from lora_rounds import BUDGETS, LARGE, MODULES, merged_round, method_on, plan_of, random_updates, state_of, train


def test_fedsa_lora_shares_only_a():
    method = FedSaLora(BUDGETS, MODULES)
    state = state_of(method)
    for tensors in (state.tensors, *(u.tensors for u in random_updates(method, state))):
        assert any(name.endswith(".A") for name in tensors)
        assert not any(name.endswith(".B") for name in tensors)


def test_fedsa_lora_keeps_b_on_the_client_and_begins_with_it(lora_model: Any):
    method = method_on(lora_model, FedSaLora)
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 1)
    assert not any(name.endswith(".B") for name in update.tensors)
    assert set(kept) == {f"lora.{path}.B" for path in lora_modules(lora_model)}
    assert all(b.any() for b in kept.values())
    plan = plan_of(method, state, 1)
    with method.session(lora_model, plan, method.download(state, plan), kept) as session:
        assert all(torch.equal(session.parameters[name].detach(), b) for name, b in kept.items())
    with method.session(lora_model, plan, method.download(state, plan), {}) as session:
        assert not any(p.any() for name, p in session.parameters.items() if name.endswith(".B"))


def test_a_fedsa_lora_clients_model_is_the_shared_a_and_head_with_its_own_b(lora_model: Any):
    method = method_on(lora_model, FedSaLora)
    assert method.capabilities.personal
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 1)
    trained = answers(lora_model)
    merged = merged_round(method, state, [update])  # the client's own A and head come back
    plan = plan_of(method, state, 1)
    method.personalize(lora_model, method.download(merged, plan), plan, kept)
    torch.testing.assert_close(answers(lora_model), trained)
    method.install(lora_model, merged.tensors, LARGE)
    assert not torch.allclose(answers(lora_model), trained)  # there is no global B


def test_fedsa_lora_can_keep_the_head_too(lora_model: Any):
    method = method_on(lora_model, FedSaLora, share_head=False)
    state = method.init(lora_model)
    update, kept = train(lora_model, method, state, 1)
    assert {name[-1] for name in update.tensors} == {"A"}
    assert {"head.weight", "head.bias"} < set(kept)
    plan = plan_of(method, state, 1)
    assert {name[-1] for name in method.widest_update(plan, method.download(state, plan)).tensors} == {"A"}
    with method.session(lora_model, plan, method.download(state, plan), kept) as session:
        assert all(torch.equal(session.parameters[name].detach(), t) for name, t in kept.items())
    update, kept = train(lora_model, method, state, 1)
    new = merged_round(method, state, [update])
    assert torch.equal(new.tensors["head.weight"], state.tensors["head.weight"])
    trained = answers(lora_model)
    method.personalize(lora_model, method.download(new, plan), plan, kept)
    torch.testing.assert_close(answers(lora_model), trained)
