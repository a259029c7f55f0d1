"""Laws of every LoRA method on the server, with random updates of two modules."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fftmoe.adapter.low_rank import block_of_module
from fftmoe.errors import InputError
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.ffa_lora import FfaLora
from fftmoe.methods.flora import FLora
from fftmoe.methods.hetlora import HetLora
from fftmoe.methods.lora import LoraMethod, matching_rank, own_modules
from fftmoe.records import Budget, ServerState
from fftmoe.rng import generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from lora_rounds import (
    BUDGETS,
    LARGE,
    MEDIUM,
    MODULES,
    ONE,
    TRAINING,
    dense_merged,
    every_method,
    merged_round,
    plan_of,
    random_update,
    random_updates,
    state_of,
)


@every_method
def test_a_module_that_nobody_adapts_is_unchanged_to_the_bit(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    # First a round of all clients, so that FLoRA has merged something.
    state = state_of(method)
    state = merged_round(method, state, random_updates(method, state))
    before = {name: t.clone() for name, t in state.tensors.items()}
    new = merged_round(method, state, [random_update(method, state, 3)])
    unchanged = {name for name, t in before.items() if torch.equal(new.tensors[name], t)}
    assert unchanged == {name for name in before if ONE in name}
    assert all(torch.equal(state.tensors[name], t) for name, t in before.items())  # the old state is not changed


@every_method
def test_who_has_which_number_does_not_matter(kind: type[LoraMethod]):
    """Clients of one tier, numbered the other way round, up to rounding."""
    method = kind(dict.fromkeys(range(3), MEDIUM), MODULES)
    state = state_of(method)
    budgets_alike = [random_update(method, state, c) for c in range(3)]
    swapped = [dataclasses.replace(u, client_id=2 - u.client_id) for u in reversed(budgets_alike)]
    one, two = merged_round(method, state, budgets_alike), merged_round(method, state, swapped)
    for path in MODULES:
        for_both = [method_product(method, s, path) for s in (one, two)]
        torch.testing.assert_close(for_both[0], for_both[1], rtol=1e-4, atol=1e-4)


def method_product(method: LoraMethod, state: ServerState, path: str) -> Tensor:
    """What the global model adds to a module; only A for the method that shares no B."""
    if isinstance(method, FLora):
        return dense_merged(state.tensors, path)
    a, b = method.start(state.tensors, MEDIUM, round=1)[path]
    return a if isinstance(method, FedSaLora) else b @ a


@every_method
def test_the_head_is_averaged_by_examples_and_losses_plainly(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    state = state_of(method)
    updates = random_updates(method, state)
    plan = plan_round(method, state, 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
    new, diagnostics = apply_round(method, state, plan, iter(updates))
    weights = np.array([u.num_examples for u in updates], dtype=float)
    mean = np.average([u.tensors["head.weight"].numpy() for u in updates], axis=0, weights=weights)
    np.testing.assert_allclose(new.tensors["head.weight"], state.tensors["head.weight"].numpy() + mean, atol=1e-6)
    assert diagnostics == {"train_loss": 1.5}
    assert new.round == 1


@every_method
def test_no_message_holds_more_than_the_clients_rank_or_blocks(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    state = state_of(method)
    if kind is FLora:  # downloads what was merged, of any rank; before anything is, only the head
        assert set(method.download(state, plan_of(method, state, 2))) == {"head.weight"}
    for client_id, budget in BUDGETS.items():
        plan = plan_of(method, state, client_id)
        download = method.download(state, plan)
        assert plan.experts == {}
        for tensors in (download, method.widest_update(plan, download).tensors):
            assert {name for name in tensors if "head" in name} == {"head.weight"}
            for name in (name for name in tensors if name.startswith("lora.")):
                _, _, path = name[:-2].partition(".")
                assert block_of_module(path) in budget.blocks
                rank = tensors[name].shape[0 if name.endswith(".A") else 1]
                assert rank == method.rank(budget) <= budget.rank


@every_method
def test_parameters_are_those_that_a_client_trains(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    for budget in BUDGETS.values():
        factors = [f for path, f in method.start({}, budget, 1).items() if path in own_modules(MODULES, budget.blocks)]
        held = sum(("A" in kind.trained) * a.numel() + ("B" in kind.trained) * b.numel() for a, b in factors)
        assert method.parameters(budget) == held


def test_a_matching_rank_is_the_largest_that_fits():
    """Per rank 7 + 11 in block 1 and 13 + 5 in block 2; B by itself 11 and 5, A by itself 7 and 13."""
    assert matching_rank("t", 36 * 4 + 35, MODULES, (1, 2)) == 4
    assert matching_rank("t", 36 * 4 + 36, MODULES, (1, 2)) == 5
    assert matching_rank("t", 36, MODULES, (2,)) == 2
    assert matching_rank("t", 36 * 4, MODULES, (1, 2), match="uplink", sent=FfaLora.sent) == 36 * 4 // 16
    assert matching_rank("t", 36 * 4, MODULES, (1, 2), match="uplink", sent=FedSaLora.sent) == 36 * 4 // 20
    assert matching_rank("t", 36 * 4, MODULES, (1, 2), match="uplink", sent=HetLora.sent) == 4
    with pytest.raises(InputError, match=r"budget 'small' allows 17 parameters per block .* needs 18 parameters"):
        matching_rank("small", 35, MODULES, (1, 2))
    with pytest.raises(InputError, match="did you mean 'uplink'"):
        matching_rank("t", 99, MODULES, (1, 2), match="uplnk")


@every_method
def test_the_first_a_is_another_for_every_seed_and_module(kind: type[LoraMethod]):
    alike = {"layer.1.q": (7, 11), "layer.1.k": (7, 11)}
    starts = [kind({0: LARGE}, alike, seed=seed).start({}, LARGE, round=1) for seed in (0, 0, 1)]
    (q, k), (again, _), (other, _) = ([a for a, _ in start.values()] for start in starts)
    assert torch.equal(q, again)
    assert not torch.isclose(q, k).any()
    assert not torch.isclose(q, other).any()


def test_the_first_a_is_drawn_as_peft_draws_it():
    modules = {ONE: (10_007, 3)}
    a = FedIt({0: Budget("t", 0, 0, (1,), rank=7)}, modules).start({}, LARGE, 1)[ONE][0]
    drawn = nn.init.kaiming_uniform_(torch.empty(7, 10_007), a=5**0.5, generator=generator(0))
    assert float(a.abs().max()) == pytest.approx(float(drawn.abs().max()), rel=1e-3)
    assert float(a.std()) == pytest.approx(float(drawn.std()), rel=0.02)
    assert abs(float(a.mean())) < 0.02 * float(a.std())
