"""The LoRA methods against the closed forms of their definitions, and on a tiny BERT with peft's own LoRA.

Server-side tests use two modules of prime sizes and four clients of unlike ranks, one of which adapts one block.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn

from federation import NUM_EXAMPLES, examples, exchange, plan_client
from fftmoe.adapter.low_rank import TARGETS, block_of_module, target_names
from fftmoe.backbones import attach_adapter, load_adapter, load_backbone, logits
from fftmoe.backbones.lora import (
    load_factors,
    lora_config,
    lora_modules,
    merged,
)
from fftmoe.client.update import update_client
from fftmoe.data import training_batches
from fftmoe.errors import InputError, RunError
from fftmoe.head import make_head
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.ffa_lora import FfaLora
from fftmoe.methods.flexlora import FlexLora, split_product
from fftmoe.methods.flora import FLora, stack
from fftmoe.methods.hetlora import HetLora, product_norm
from fftmoe.methods.lora import LoraMethod, matching_rank, own_modules
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    ServerState,
    Tensors,
    Training,
    pack_update,
)
from fftmoe.rng import generator, numpy_generator
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from models import FAMILIES

ONE, TWO = "layer.1.q", "layer.2.v"
MODULES = {ONE: (7, 11), TWO: (13, 5)}
BLOCKS = (1, 2)
SMALL, MEDIUM, LARGE = (Budget(f"rank {r}", 0, 0, BLOCKS, rank=r) for r in (2, 3, 5))
NARROW = Budget("narrow", 0, 0, (2,), rank=3)
BUDGETS = {0: SMALL, 1: MEDIUM, 2: LARGE, 3: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.02, head_learning_rate=0.5, local_steps=3)
SCALE = 2.5
CLASSES: tuple[type[LoraMethod], ...] = (FedIt, FfaLora, FedSaLora, HetLora, FLora, FlexLora)
every_method = pytest.mark.parametrize("kind", CLASSES)
seeds = st.integers(0, 2**31)


# On the server alone: random updates of two modules.


def state_of(method: LoraMethod) -> ServerState:
    """The method's first state, with a head of its own and, where it keeps factors, a B that is not zero."""
    state = method.init(nn.Module())
    source = generator(1, "state")
    moved = {name: torch.randn(t.shape, generator=source) for name, t in state.tensors.items() if name.endswith(".B")}
    head = torch.randn(3, 7, generator=source)
    return dataclasses.replace(state, tensors={**state.tensors, **moved, "head.weight": head})


def plan_of(method: LoraMethod, state: ServerState, client_id: int, training: Training = TRAINING) -> ClientPlan:
    return plan_client(method, state, client_id, method.budgets, training)


def random_update(method: LoraMethod, state: ServerState, client_id: int, seed: int = 0) -> ClientUpdate:
    """Random changes of everything that this client may send."""
    plan = plan_of(method, state, client_id)
    source, random = generator(seed, "update", client_id), numpy_generator(seed, "size", client_id)
    widest = method.widest_update(plan, method.download(state, plan))
    return dataclasses.replace(
        widest,
        num_examples=int(random.integers(1, 100)),
        tensors={name: torch.randn(t.shape, generator=source) for name, t in widest.tensors.items()},
        metrics={"loss": float(client_id)},
    )


def merged_round(method: LoraMethod, state: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
    plan = plan_round(method, state, state.round + 1, [], BUDGETS, TRAINING, seed=5)
    return apply_round(method, state, plan, updates)[0]


def numpy_factors(method: LoraMethod, state: ServerState, update: ClientUpdate) -> dict[str, tuple[Any, Any]]:
    """A_n and B_n of a client, float64: what it started from, and its change."""
    start = method.start(state.tensors, BUDGETS[update.client_id], update.round)
    return {
        path: (
            a.double().numpy() + update.tensors[f"lora.{path}.A"].double().numpy(),
            b.double().numpy() + update.tensors[f"lora.{path}.B"].double().numpy(),
        )
        for path, (a, b) in start.items()
    }


def sum_of_products(method: LoraMethod, state: ServerState, updates: list[ClientUpdate], path: str) -> Any:
    """Sum of p_n B_n A_n over the clients that adapt the module, by examples."""
    holders = [u for u in updates if f"lora.{path}.A" in u.tensors]
    total = sum(u.num_examples for u in holders)
    result = 0.0
    for update in holders:
        a, b = numpy_factors(method, state, update)[path]
        result = result + update.num_examples / total * b @ a
    return result


def product_of(tensors: Tensors, path: str) -> Any:
    return (tensors[f"lora.{path}.B"].double() @ tensors[f"lora.{path}.A"].double()).numpy()


@given(seed=seeds)
@settings(max_examples=10)
def test_fedit_averages_each_factor_by_examples(seed: int):
    method = FedIt(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c, seed) for c in BUDGETS]
    new = merged_round(method, state, updates)
    for name, old in state.tensors.items():
        senders = [u for u in updates if name in u.tensors]
        assert [u.client_id for u in senders] == ([0, 1, 2] if ONE in name else [0, 1, 2, 3])
        weights = np.array([u.num_examples for u in senders], dtype=float)
        weights /= weights.sum()
        assert sum(weights) == pytest.approx(1.0)
        values = [(old.double() + u.tensors[name].double()).numpy() for u in senders]
        np.testing.assert_allclose(new.tensors[name], np.tensordot(weights, values, 1), rtol=1e-6, atol=1e-6)


def test_methods_that_average_factors_give_everyone_the_smallest_rank():
    for kind in (FedIt, FfaLora, FedSaLora):
        method = kind(BUDGETS, MODULES)
        assert {method.rank(budget) for budget in BUDGETS.values()} == {2}
        assert {t.shape[0] for name, t in method.init(nn.Module()).tensors.items() if name.endswith(".A")} <= {2}
    for kind in (HetLora, FLora, FlexLora):
        method = kind(BUDGETS, MODULES)
        assert [method.rank(budget) for budget in BUDGETS.values()] == [2, 3, 5, 3]


@given(seed=seeds)
@settings(max_examples=10)
def test_ffa_lora_averages_products_exactly(seed: int):
    method = FfaLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c, seed) for c in BUDGETS]
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


def test_fedsa_lora_shares_a_alone():
    method = FedSaLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c) for c in BUDGETS]
    for tensors in (state.tensors, *(u.tensors for u in updates)):
        assert not any(name.endswith(".B") for name in tensors)
    new = merged_round(method, state, updates)
    weights = np.array([u.num_examples for u in updates], dtype=float) / sum(u.num_examples for u in updates)
    values = [(state.tensors[f"lora.{TWO}.A"] + u.tensors[f"lora.{TWO}.A"]).numpy() for u in updates]
    np.testing.assert_allclose(new.tensors[f"lora.{TWO}.A"], np.tensordot(weights, values, 1), atol=1e-6)


@given(seed=seeds)
@settings(max_examples=10)
def test_hetlora_pads_with_zeros_and_weighs_by_the_norm_of_products(seed: int):
    """An independent loop over dense products and padded arrays."""
    method = HetLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c, seed) for c in BUDGETS]
    new = merged_round(method, state, updates)
    factors = {u.client_id: numpy_factors(method, state, u) for u in updates}
    norms = {c: np.sqrt(sum(np.sum((b @ a) ** 2) for a, b in own.values())) for c, own in factors.items()}
    for path, (d_in, d_out) in MODULES.items():
        holders = [c for c in BUDGETS if path in factors[c]]
        a_new, b_new = np.zeros((5, d_in)), np.zeros((d_out, 5))
        for c in holders:
            a, b = factors[c][path]
            share = norms[c] / sum(norms[h] for h in holders)
            for row in range(a.shape[0]):
                a_new[row] += share * a[row]
                b_new[:, row] += share * b[:, row]
        np.testing.assert_allclose(new.tensors[f"lora.{path}.A"], a_new, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new.tensors[f"lora.{path}.B"], b_new, rtol=1e-5, atol=1e-6)


def test_hetlora_weights_sum_to_one_so_equal_clients_change_nothing():
    method = HetLora(dict.fromkeys(BUDGETS, LARGE), MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c) for c in BUDGETS]
    still = [dataclasses.replace(u, tensors={n: 0 * t for n, t in u.tensors.items()}) for u in updates]
    new = merged_round(method, state, still)
    for name, old in state.tensors.items():
        torch.testing.assert_close(new.tensors[name], old)


def test_hetlora_leaves_rows_that_nobody_of_the_cohort_holds():
    method = HetLora(BUDGETS, MODULES)
    state = state_of(method)
    new = merged_round(method, state, [random_update(method, state, c) for c in (0, 1)])
    for path in MODULES:
        a, b, old_a, old_b = (s.tensors[f"lora.{path}.{f}"] for s in (new, state) for f in "AB")
        assert torch.equal(a[3:], old_a[3:])
        assert torch.equal(b[:, 3:], old_b[:, 3:])
        assert not torch.isclose(a[:3], old_a[:3]).any()


def test_hetlora_falls_back_to_equal_weights_where_every_product_is_zero():
    method = HetLora(BUDGETS, MODULES)
    state = method.init(nn.Module())  # B = 0
    updates = [random_update(method, state, c) for c in BUDGETS]
    updates = [
        dataclasses.replace(u, tensors={n: 0 * t if n.endswith(".B") else t for n, t in u.tensors.items()})
        for u in updates
    ]
    new = merged_round(method, state, updates)
    starts = [numpy_factors(method, state, u)[TWO][0] for u in updates]
    np.testing.assert_allclose(new.tensors[f"lora.{TWO}.A"][:2], sum(a[:2] for a in starts) / 4, atol=1e-6)
    assert not new.tensors[f"lora.{TWO}.B"].any()


def test_the_norm_of_a_product_needs_no_product():
    source = generator(0)
    factors = {
        p: (torch.randn(3, i, generator=source), torch.randn(o, 3, generator=source)) for p, (i, o) in MODULES.items()
    }
    dense = sum(float((b @ a).square().sum()) for a, b in factors.values()) ** 0.5
    assert product_norm(factors) == pytest.approx(dense, rel=1e-5)  # float32
    assert product_norm({}) == 0.0


ranks = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 99)), min_size=1, max_size=5)


@given(clients=ranks, seed=seeds)
@settings(max_examples=25)
def test_a_stack_is_the_weighted_sum_of_products_exactly_and_in_any_order(clients: list[tuple[int, int]], seed: int):
    source = generator(seed)
    parts = [
        (n, torch.randn(r, 7, generator=source).double(), torch.randn(11, r, generator=source).double())
        for r, n in clients
    ]
    total = sum(n for n, _, _ in parts)
    expected = sum(n / total * b.numpy() @ a.numpy() for n, a, b in parts)
    for order in (parts, parts[::-1]):
        a, b = stack(order)
        assert a.shape == (sum(r for r, _ in clients), 7)
        np.testing.assert_allclose(b @ a, expected, rtol=0, atol=1e-12)


@given(seed=seeds)
@settings(max_examples=10)
def test_flora_merges_the_exact_sum_of_products_whatever_its_form(seed: int):
    """13 x 5 is dense at once; 11 x 7 = 77 is larger than factors of one client of rank 2 and not of three."""
    method = FLora(BUDGETS, MODULES)
    state, expected = state_of(method), dict.fromkeys(MODULES, 0.0)
    for cohort in ([0], [1], [0, 1, 2, 3]):
        updates = [random_update(method, state, c, seed) for c in cohort]
        expected = {p: expected[p] + sum_of_products(method, state, updates, p) for p in MODULES}
        state = merged_round(method, state, updates)
        forms = {name.removeprefix(f"merged.{ONE}.") for name in state.tensors if ONE in name}
        assert forms == ({"A", "B"} if cohort == [0] else {"W"})
        for path, product in expected.items():
            np.testing.assert_allclose(dense_merged(state.tensors, path), product, rtol=1e-5, atol=1e-5)  # float32
    assert set(method.download(state, plan_of(method, state, 3))) == {"head.weight", f"merged.{TWO}.W"}


def dense_merged(tensors: Tensors, path: str) -> Tensor:
    if f"merged.{path}.W" in tensors:
        return tensors[f"merged.{path}.W"]
    return tensors[f"merged.{path}.B"] @ tensors[f"merged.{path}.A"]


def test_flora_clients_begin_each_round_anew_and_alike():
    method = FLora(BUDGETS, MODULES, seed=4)
    first, second = method.start({}, SMALL, round=1), method.start({}, SMALL, round=2)
    assert torch.equal(method.start({}, LARGE, round=1)[ONE][0][:2], first[ONE][0])
    assert not torch.equal(first[ONE][0], second[ONE][0])
    assert not second[ONE][1].any()


@given(seed=seeds)
@settings(max_examples=10)
def test_flexlora_sends_each_client_the_truncated_svd_of_the_sum(seed: int):
    method = FlexLora(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c, seed) for c in BUDGETS]
    new = merged_round(method, state, updates)
    for path in MODULES:
        u, s, vh = np.linalg.svd(sum_of_products(method, state, updates, path), full_matrices=False)
        for client_id, budget in BUDGETS.items():
            r = budget.rank
            sent = method.download(new, plan_of(method, new, client_id))
            if path == ONE and budget is NARROW:
                assert f"lora.{path}.A" not in sent
                continue
            expected = (u[:, :r] * s[:r]) @ vh[:r]
            np.testing.assert_allclose(product_of(sent, path), expected, rtol=0, atol=1e-5 * s[0])
            # The singular values are divided evenly.
            norms = sent[f"lora.{path}.A"].norm(dim=1), sent[f"lora.{path}.B"].norm(dim=0)
            np.testing.assert_allclose(norms[0], np.sqrt(s[:r]), rtol=1e-4)
            np.testing.assert_allclose(norms[1], np.sqrt(s[:r]), rtol=1e-4)


def test_flexlora_can_go_on_training_components_that_are_zero():
    method = FlexLora(BUDGETS, MODULES)
    state = method.init(nn.Module())
    first = {name: t.clone() for name, t in state.tensors.items()}
    silent = random_update(method, state, 0)
    silent = dataclasses.replace(silent, tensors={n: 0 * t for n, t in silent.tensors.items()})
    unmoved = merged_round(method, state, [silent])
    assert all(torch.equal(unmoved.tensors[name], t) for name, t in first.items())
    # One client of rank 2: the sum has two components, the other three keep the first A and a zero B.
    update = random_update(method, state, 0)
    new = merged_round(method, state, [update])
    a, b = new.tensors[f"lora.{ONE}.A"], new.tensors[f"lora.{ONE}.B"]
    assert torch.equal(a[2:], first[f"lora.{ONE}.A"][2:])
    assert not b[:, 2:].any()
    np.testing.assert_allclose(product_of(new.tensors, ONE), sum_of_products(method, state, [update], ONE), atol=1e-5)


@given(rank=st.integers(1, 12), held=st.integers(1, 30), seed=seeds)
@settings(max_examples=25)
def test_a_split_product_is_the_best_of_its_rank(rank: int, held: int, seed: int):
    """Stacks thinner and thicker than the matrix, against numpy's SVD of the dense product."""
    source = generator(seed)
    a, b = torch.randn(held, 7, generator=source).double(), torch.randn(11, held, generator=source).double()
    split_a, split_b = split_product(a, b, rank)
    u, s, vh = np.linalg.svd((b @ a).numpy())
    r = min(rank, held, 7)
    assert split_a.shape == (r, 7)
    np.testing.assert_allclose(split_b @ split_a, (u[:, :r] * s[:r]) @ vh[:r], rtol=0, atol=1e-10 * s[0])


@every_method
def test_a_module_that_nobody_adapts_is_unchanged_to_the_bit(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    # A round of everyone first, so that FLoRA has merged something.
    state = state_of(method)
    state = merged_round(method, state, [random_update(method, state, c) for c in BUDGETS])
    before = {name: t.clone() for name, t in state.tensors.items()}
    new = merged_round(method, state, [random_update(method, state, 3)])
    unchanged = {name for name, t in before.items() if torch.equal(new.tensors[name], t)}
    assert unchanged == {name for name in before if ONE in name}
    assert all(torch.equal(state.tensors[name], t) for name, t in before.items())  # the old state is left alone


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
    """What the global model adds to a module; A alone where that is all that is shared."""
    if isinstance(method, FLora):
        return dense_merged(state.tensors, path)
    a, b = method.start(state.tensors, MEDIUM, round=1)[path]
    return a if isinstance(method, FedSaLora) else b @ a


@every_method
def test_the_head_is_averaged_by_examples_and_losses_plainly(kind: type[LoraMethod]):
    method = kind(BUDGETS, MODULES)
    state = state_of(method)
    updates = [random_update(method, state, c) for c in BUDGETS]
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
    """Per rank 7 + 11 in block 1 and 13 + 5 in block 2; B alone 11 and 5, A alone 7 and 13."""
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


# With a model: peft's LoRA on two modules of two blocks of a tiny BERT.


@pytest.fixture
def fresh(backbone_folder: Path) -> Callable[[], Any]:
    """Makes a model as any process would."""
    config = lora_config(1, SCALE, ["query", "intermediate.dense"], BLOCKS)
    return lambda: attach_adapter(load_backbone(str(backbone_folder), num_labels=3), config)


@pytest.fixture
def model(fresh: Callable[[], Any]) -> Any:
    return fresh()


def on(model: Any, kind: type[LoraMethod], **fields: Any) -> Any:
    """The method for this model."""
    return kind(BUDGETS, lora_modules(model), **fields)


def train(
    model: Any,
    method: LoraMethod,
    state: ServerState,
    client_id: int,
    client_state: Tensors | None = None,
    **changes: Any,
) -> tuple[ClientUpdate, Tensors]:
    plan = plan_of(method, state, client_id, dataclasses.replace(TRAINING, **changes))
    return exchange(model, method, state, plan, client_state, np.arange(NUM_EXAMPLES)[client_id::2])


def run_round(model: Any, method: LoraMethod, state: ServerState, cohort: Iterable[int]) -> ServerState:
    plan = plan_round(method, state, state.round + 1, sorted(cohort), BUDGETS, TRAINING, seed=5)
    return apply_round(method, state, plan, (train(model, method, state, c)[0] for c in sorted(cohort)))[0]


def test_factors_of_any_rank_add_scale_times_their_product(model: Any):
    source = generator(2)
    path = "backbone.encoder.layer.1.attention.self.query"
    assert list(lora_modules(model)) == [
        f"backbone.encoder.layer.{block}.{end}"
        for block in BLOCKS
        for end in ("attention.self.query", "intermediate.dense")
    ]
    layer = model.base_model.model.get_submodule(path)
    x = torch.randn(3, 20, generator=source)
    for rank in (5, 2, 0, 3):
        a, b = torch.randn(rank, 20, generator=source), torch.randn(20, rank, generator=source)
        loaded = load_factors(model, {path: (a, b)})
        torch.testing.assert_close(layer(x), layer.get_base_layer()(x) + SCALE * x @ a.T @ b.T)
        assert set(loaded) == {path}
        assert loaded[path][0] is layer.lora_A["default"].weight
        assert loaded[path][0].requires_grad
    others = [m for m in lora_modules(model) if m != path]
    assert all(model.base_model.model.get_submodule(m).lora_A["default"].weight.shape[0] == 0 for m in others)


def test_one_string_of_target_modules_would_ignore_the_blocks():
    with pytest.raises(InputError, match="list the endings"):
        lora_config(1, 1.0, "query", BLOCKS)
    with pytest.raises(InputError, match=r"'pooler\.dense' is in no numbered block"):
        block_of_module("pooler.dense")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft finds GPT-2's transposed weights itself
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("targets", TARGETS)
def test_merging_a_product_is_the_same_as_loading_its_factors(family: str, targets: str):
    """In every family, GPT-2's transposed weights included; afterwards the weights are what they were."""
    tiny = FAMILIES[family]
    backbone = tiny.make()
    model = attach_adapter(backbone, lora_config(1, SCALE, target_names(backbone, [0, 2], targets)))
    modules = lora_modules(model)
    assert {block_of_module(path) for path in modules} == {0, 2}
    source = generator(6)
    factors = {
        path: (0.1 * torch.randn(3, i, generator=source), torch.randn(o, 3, generator=source))
        for path, (i, o) in modules.items()
    }
    load_factors(model, {})
    plain = logits(model, tiny.batch())
    with merged(model, {path: b @ a for path, (a, b) in factors.items()}):
        by_weight = logits(model, tiny.batch())
    assert torch.equal(logits(model, tiny.batch()), plain)
    load_factors(model, factors)
    torch.testing.assert_close(logits(model, tiny.batch()), by_weight, rtol=1e-4, atol=1e-5)  # three blocks of float32
    assert not torch.allclose(plain, by_weight, rtol=1e-3)


def test_targets_divide_a_block_into_attention_and_feed_forward():
    backbone = FAMILIES["bert"].make()
    names = {targets: target_names(backbone, [1], targets) for targets in TARGETS}
    prefix = "bert.encoder.layer.1."
    assert names["feed-forward"] == [f"{prefix}intermediate.dense", f"{prefix}output.dense"]
    assert names["attention"] == [
        f"{prefix}attention.{end}" for end in ("self.query", "self.key", "self.value", "output.dense")
    ]
    assert names["all-linear"] == names["attention"] + names["feed-forward"]
    with pytest.raises(InputError, match="did you mean 'attention'"):
        target_names(backbone, [1], "atention")
    with pytest.raises(InputError, match="hold no linear attention modules"):
        target_names(nn.Linear(2, 3), [1], "attention")


@every_method
def test_nothing_depends_on_the_process_that_holds_the_model(fresh: Callable[[], Any], kind: type[LoraMethod]):
    """peft draws a model's A from global randomness, which no other process shares."""
    updates, outputs = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = fresh()
        method = on(model, kind)
        state = run_round(model, method, method.init(model), BUDGETS)
        method.install(model, state.tensors, LARGE)
        outputs.append(logits(model, examples().batch(range(5))))
        updates.append(train(model, method, state, 1)[0])
    assert torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(updates[0].tensors[name], t) for name, t in updates[1].tensors.items())


@every_method
def test_a_clients_update_does_not_depend_on_who_trained_before_it(model: Any, kind: type[LoraMethod]):
    method = on(model, kind)
    state = run_round(model, method, method.init(model), BUDGETS)
    one, _ = train(model, method, state, 1)
    train(model, method, state, 3)
    method.install(model, state.tensors, LARGE)
    again, _ = train(model, method, state, 1)
    assert all(torch.equal(one.tensors[name], t) for name, t in again.tensors.items())
    assert all(t.any() for t in one.tensors.values())


@every_method
def test_the_frozen_weights_are_restored_to_the_bit(model: Any, kind: type[LoraMethod]):
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert len(frozen) > 20
    method = on(model, kind)
    state = run_round(model, method, method.init(model), BUDGETS)
    state = run_round(model, method, state, BUDGETS)
    method.install(model, state.tensors, LARGE)
    with pytest.raises(RunError):
        train(model, method, state, 1, head_learning_rate=1e38)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


@every_method
def test_an_update_is_never_wider_than_forecast(model: Any, kind: type[LoraMethod]):
    method = on(model, kind)
    state = run_round(model, method, method.init(model), BUDGETS)
    for client_id in BUDGETS:
        plan = plan_of(method, state, client_id)
        widest = method.widest_update(plan, method.download(state, plan))
        update, _ = train(model, method, state, client_id)
        assert {n: t.shape for n, t in widest.tensors.items()} == {n: t.shape for n, t in update.tensors.items()}
        assert len(pack_update(update)) <= len(pack_update(widest))


@every_method
def test_a_head_that_clients_do_not_train_stays_and_is_not_sent(model: Any, kind: type[LoraMethod]):
    method = on(model, kind)
    state = method.init(model)
    update, _ = train(model, method, state, 1, train_head=False)
    assert not any(name.startswith("head.") for name in update.tensors)
    assert any(name.startswith("lora.") for name in update.tensors)
    plan = plan_of(method, state, 1, dataclasses.replace(TRAINING, train_head=False))
    assert not any(n.startswith("head.") for n in method.widest_update(plan, method.download(state, plan)).tensors)
    assert torch.equal(merged_round(method, state, [update]).tensors["head.weight"], state.tensors["head.weight"])


@every_method
def test_a_saved_adapter_opens_with_peft_and_answers_alike(
    model: Any, kind: type[LoraMethod], backbone_folder: Path, tmp_path: Path
):
    method = on(model, kind)
    state = run_round(model, method, method.init(model), BUDGETS)
    method.install(model, state.tensors, LARGE)
    expected = logits(model, examples().batch(range(5)))
    model.save_pretrained(tmp_path)
    opened = load_adapter(load_backbone(str(backbone_folder), num_labels=3), tmp_path)
    torch.testing.assert_close(logits(opened, examples().batch(range(5))), expected)


def test_a_saved_adapter_of_unlike_ranks_opens_too(model: Any, backbone_folder: Path, tmp_path: Path):
    source = generator(3)
    factors = {
        path: (torch.randn(rank, i, generator=source), torch.randn(o, rank, generator=source))
        for rank, (path, (i, o)) in enumerate(lora_modules(model).items(), 1)
    }
    load_factors(model, factors)
    expected = logits(model, examples().batch(range(5)))
    model.save_pretrained(tmp_path)
    opened = load_adapter(load_backbone(str(backbone_folder), num_labels=3), tmp_path)
    torch.testing.assert_close(logits(opened, examples().batch(range(5))), expected)


@every_method
def test_a_tier_without_a_block_leaves_it_as_the_backbone(model: Any, kind: type[LoraMethod]):
    method = on(model, kind)
    state = run_round(model, method, method.init(model), BUDGETS)
    method.install(model, state.tensors, NARROW)
    for path in lora_modules(model):
        rank = model.base_model.model.get_submodule(path).lora_A["default"].weight.shape[0]
        assert (rank == 0) is (block_of_module(path) == 1)


def test_one_client_with_all_data_is_ordinary_lora_fine_tuning(fresh: Callable[[], Any]):
    budgets = {0: MEDIUM}
    model = fresh()
    method = FedIt(budgets, lora_modules(model))
    state = method.init(model)
    plan = plan_round(method, state, 1, [0], budgets, TRAINING, seed=5)
    download = method.download(state, plan.clients[0])
    update, _ = update_client(
        model, method, make_head("averaged"), plan.clients[0], download, {}, examples(), np.arange(23)
    )
    federated, _ = apply_round(method, state, plan, [update])

    reference: PeftModel = fresh()
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
        loss = F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_ffa_lora_trains_b_alone_on_the_a_of_the_seed(model: Any):
    method = on(model, FfaLora, seed=3)
    state = method.init(model)
    update, kept = train(model, method, state, 1)
    assert kept == {}
    assert {name for name in update.tensors if name.startswith("lora.")} == {f"lora.{p}.B" for p in lora_modules(model)}
    for path in lora_modules(model):
        frozen = model.base_model.model.get_submodule(path).lora_A["default"].weight.detach()
        assert torch.equal(frozen, method.start({}, MEDIUM, round=2)[path][0])


def test_fedsa_lora_keeps_b_on_the_client_and_begins_with_it(model: Any):
    method = on(model, FedSaLora)
    state = method.init(model)
    update, kept = train(model, method, state, 1)
    assert not any(name.endswith(".B") for name in update.tensors)
    assert set(kept) == {f"lora.{path}.B" for path in lora_modules(model)}
    assert all(b.any() for b in kept.values())
    plan = plan_of(method, state, 1)
    with method.session(model, plan, method.download(state, plan), kept) as session:
        assert all(torch.equal(session.parameters[name].detach(), b) for name, b in kept.items())
    with method.session(model, plan, method.download(state, plan), {}) as session:
        assert not any(p.any() for name, p in session.parameters.items() if name.endswith(".B"))


def test_a_fedsa_lora_clients_model_is_the_shared_a_and_head_with_its_own_b(model: Any):
    method = on(model, FedSaLora)
    assert method.capabilities.personal
    state = method.init(model)
    update, kept = train(model, method, state, 1)
    batch = examples().batch(range(5))
    trained = logits(model, batch)
    alone = merged_round(method, state, [update])  # its own A and head come back
    plan = plan_of(method, state, 1)
    method.personalize(model, method.download(alone, plan), plan, kept)
    torch.testing.assert_close(logits(model, batch), trained)
    method.install(model, alone.tensors, LARGE)
    assert not torch.allclose(logits(model, batch), trained)  # there is no global B


def test_fedsa_lora_can_keep_the_head_too(model: Any):
    method = on(model, FedSaLora, share_head=False)
    state = method.init(model)
    update, kept = train(model, method, state, 1)
    assert {name[-1] for name in update.tensors} == {"A"}
    assert {"head.weight", "head.bias"} < set(kept)
    plan = plan_of(method, state, 1)
    assert {name[-1] for name in method.widest_update(plan, method.download(state, plan)).tensors} == {"A"}
    with method.session(model, plan, method.download(state, plan), kept) as session:
        assert all(torch.equal(session.parameters[name].detach(), t) for name, t in kept.items())
    update, kept = train(model, method, state, 1)
    new = merged_round(method, state, [update])
    assert torch.equal(new.tensors["head.weight"], state.tensors["head.weight"])
    trained = logits(model, examples().batch(range(5)))
    method.personalize(model, method.download(new, plan), plan, kept)
    torch.testing.assert_close(logits(model, examples().batch(range(5))), trained)


def test_methods_without_personal_parts_personalize_as_they_install(model: Any):
    for kind in (FedIt, FfaLora, HetLora, FLora, FlexLora):
        method = on(model, kind)
        assert not method.capabilities.personal
        state = run_round(model, method, method.init(model), BUDGETS)
        seen = []
        plan = plan_of(method, state, 0)
        method.personalize(model, method.download(state, plan), plan, {})
        seen.append(logits(model, examples().batch(range(5))))
        method.install(model, state.tensors, SMALL)
        seen.append(logits(model, examples().batch(range(5))))
        assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("cohort", [[0], [0, 1, 2, 3]])  # factors, and dense
def test_what_flora_merged_changes_the_backbone_by_exactly_that(
    model: Any, cohort: list[int], fresh: Callable[[], Any]
):
    """Against a backbone whose weights are changed by hand, and against what the next client begins with."""
    method = on(model, FLora)
    initial = method.init(model)
    plan = plan_round(method, initial, 1, cohort, BUDGETS, TRAINING, seed=5)
    updates = [train(model, method, initial, c)[0] for c in cohort]
    state, _ = apply_round(method, initial, plan, updates)
    assert any(name.endswith(".W") for name in state.tensors) is (len(cohort) > 1)
    by_hand = fresh()
    for path in lora_modules(model):
        holders = [u for u in updates if f"lora.{path}.A" in u.tensors]
        total = sum(u.num_examples for u in holders)
        weight = by_hand.base_model.model.get_submodule(path).get_base_layer().weight
        for update in holders:
            start = method.start({}, BUDGETS[update.client_id], round=1)[path][0]
            a, b = start + update.tensors[f"lora.{path}.A"], update.tensors[f"lora.{path}.B"]
            weight.data += SCALE * update.num_examples / total * b @ a
    method.install(by_hand, {name: t for name, t in state.tensors.items() if name.startswith("head.")}, LARGE)
    batch = examples().batch(range(5))
    expected = logits(by_hand, batch)
    method.install(model, state.tensors, LARGE)
    torch.testing.assert_close(logits(model, batch), expected)
    plan_next = plan_of(method, state, 2)
    with method.session(model, plan_next, method.download(state, plan_next), {}):
        torch.testing.assert_close(logits(model, batch), expected)
    method.install(model, initial.tensors, LARGE)
    assert not torch.allclose(logits(model, batch), expected)


@every_method
def test_rounds_lower_the_loss(model: Any, kind: type[LoraMethod]):
    method = on(model, kind)
    state = method.init(model)
    kept: dict[int, Tensors] = {}
    losses = []
    for _ in range(4):
        plan = plan_round(method, state, state.round + 1, sorted(BUDGETS), BUDGETS, TRAINING, seed=5)
        updates = []
        for client_id in BUDGETS:
            update, kept[client_id] = train(model, method, state, client_id, kept.get(client_id))
            updates.append(update)
        state, diagnostics = apply_round(method, state, plan, updates)
        losses.append(diagnostics["train_loss"])
    assert losses[-1] < losses[0]
