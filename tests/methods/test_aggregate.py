"""Tests laws of the weighted mean over a cohort, and of the server's step from it.

The model has M experts of H x D in one block, and a head of C x D.
"""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.errors import InputError
from fftmoe.methods.merge.aggregate import AGGREGATIONS, WeightedSum
from fftmoe.methods.merge.server_optimizer import OPTIMIZERS, ServerOptimizer
from fftmoe.records import ClientUpdate, Tensors
from fftmoe.records.names import block_of
from fftmoe.rng import generator, numpy_generator

M, H, D, C = 5, 3, 7, 2
SHAPES = {
    "blocks.1.router": torch.Size((M, D)),
    "blocks.1.up": torch.Size((M, H, D)),
    "head.weight": torch.Size((C, D)),
}
EVERYONE = tuple(range(M))

seeds = st.integers(0, 2**31)
powers = st.sampled_from([0.0, 0.5, 1.0, 2.0])


def global_tensors(seed: int = 0) -> Tensors:
    source = generator(seed, "global")
    return {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}


def update(client_id: int, experts: Sequence[int], seed: int, num_examples: int | None = None) -> ClientUpdate:
    """Make a random update of these experts, whose shares sum to 1."""
    source = generator(seed, "update", client_id)
    random = numpy_generator(seed, "shares", client_id)
    shares = random.dirichlet([1.0] * len(experts)) if experts else []
    rows = {name: len(experts) if block_of(name) is not None else C for name in SHAPES}
    return ClientUpdate(
        round=1,
        client_id=client_id,
        num_examples=num_examples or int(random.integers(1, 1000)),
        tensors={name: torch.randn(rows[name], *shape[1:], generator=source) for name, shape in SHAPES.items()},
        experts={1: tuple(experts)},
        shares={1: tuple(float(s) for s in shares)},
    )


def cohort(seed: int, num_clients: int = 4, never: int | None = 3) -> list[ClientUpdate]:
    """Make the updates of clients that trained random experts; no client trained the expert `never`."""
    random = numpy_generator(seed, "cohort")
    pool = [m for m in range(M) if m != never]
    sizes = random.integers(1, len(pool) + 1, num_clients)
    trained = [sorted(random.choice(pool, int(size), replace=False).tolist()) for size in sizes]
    return [update(n, experts, seed) for n, experts in enumerate(trained)]


def mean(updates: Sequence[ClientUpdate], kind: str = "per-expert", power: float = 0.0) -> tuple[Tensors, Tensors]:
    total = WeightedSum(SHAPES, kind, power)
    for one in updates:
        total.add(one)
    return total.mean()


def delta_of(one: ClientUpdate, name: str, expert: int) -> Tensor:
    """Return the delta of one expert; zero if the client did not train it."""
    if expert not in one.experts[1]:
        return torch.zeros(SHAPES[name][1:], dtype=torch.float64)
    return one.tensors[name][one.experts[1].index(expert)].double()


@pytest.mark.parametrize("kind", AGGREGATIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@given(seed=seeds, power=powers)
@settings(deadline=None, max_examples=10)
def test_an_expert_that_nobody_trained_is_unchanged_to_the_bit(kind: str, optimizer: str, seed: int, power: float):
    old, state = global_tensors(seed), {}
    server, new = ServerOptimizer(optimizer), old
    # Round 1 gives every expert moments, so that momentum could move an untrained expert in round 2.
    new, state = server.apply(new, *mean([update(0, EVERYONE, seed)], kind, power), state)
    before, moments_before = new, state
    new, state = server.apply(new, *mean(cohort(seed), kind, power), state)
    for name in ("blocks.1.router", "blocks.1.up"):
        assert torch.equal(new[name][3], before[name][3])
        for moment in (":m", ":v", ":t"):
            if name + moment in state:
                assert torch.equal(state[name + moment][3], moments_before[name + moment][3])
        moved = [m for m in EVERYONE if not torch.equal(new[name][m], before[name][m])]
        assert moved == sorted({m for one in cohort(seed) for m in one.experts[1]})


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_a_block_without_clients_in_a_round_is_unchanged(kind: str):
    old = global_tensors()
    nobody = dataclasses.replace(update(0, (), 1), experts={}, shares={})
    nobody = dataclasses.replace(nobody, tensors={"head.weight": nobody.tensors["head.weight"]})
    new, _ = ServerOptimizer().apply(old, *mean([nobody], kind), {})
    assert torch.equal(new["blocks.1.up"], old["blocks.1.up"])
    assert not torch.equal(new["head.weight"], old["head.weight"])


def test_updates_out_of_client_id_order_are_an_error():
    total = WeightedSum(SHAPES)
    total.add(update(4, EVERYONE, 0))
    for client_id in (4, 2):
        with pytest.raises(AssertionError, match="client_id order"):
            total.add(update(client_id, EVERYONE, 0))


@pytest.mark.parametrize("kind", AGGREGATIONS)
@given(seed=seeds, power=powers)
@settings(deadline=None, max_examples=25)
def test_which_client_holds_which_data_does_not_matter(kind: str, seed: int, power: float):
    updates = cohort(seed)
    relabelled = [dataclasses.replace(one, client_id=n) for n, one in enumerate(reversed(updates))]
    one, two = mean(updates, kind, power)[0], mean(relabelled, kind, power)[0]
    old = global_tensors(seed)
    new_one, new_two = (ServerOptimizer().apply(old, deltas, mean(updates)[1], {})[0] for deltas in (one, two))
    for name in SHAPES:
        # The order of four float64 terms changes their sum by a few units of 2^-53.
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12)
        # Rounded to float32, such sums are equal or adjacent numbers.
        torch.testing.assert_close(new_one[name], new_two[name], rtol=2**-22, atol=1e-9)


@pytest.mark.parametrize("kind", AGGREGATIONS)
@given(seed=seeds, power=powers, factor=st.integers(2, 1000))
@settings(deadline=None, max_examples=25)
def test_scaling_all_weights_changes_nothing(kind: str, seed: int, power: float, factor: int):
    updates = cohort(seed)
    scaled = [dataclasses.replace(one, num_examples=one.num_examples * factor) for one in updates]
    one, two = mean(updates, kind, power)[0], mean(scaled, kind, power)[0]
    for name in SHAPES:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12)  # float64 rounding


@given(seed=seeds, power=powers)
@settings(deadline=None, max_examples=25)
def test_each_expert_moves_within_the_range_of_its_clients(seed: int, power: float):
    updates = cohort(seed)
    deltas, trained = mean(updates, power=power)
    slack = 1e-12  # float64 rounding
    for name in ("blocks.1.router", "blocks.1.up"):
        for m in trained[name].nonzero().flatten().tolist():
            clients = torch.stack([delta_of(one, name, m) for one in updates if m in one.experts[1]])
            assert (deltas[name][m] >= clients.amin(0) - slack).all()
            assert (deltas[name][m] <= clients.amax(0) + slack).all()
    heads = torch.stack([one.tensors["head.weight"].double() for one in updates])
    assert (deltas["head.weight"] >= heads.amin(0) - slack).all()
    assert (deltas["head.weight"] <= heads.amax(0) + slack).all()


@pytest.mark.parametrize("kind", AGGREGATIONS)
@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_clients_that_all_trained_every_expert_are_averaged_by_their_examples(kind: str, seed: int):
    updates = [update(n, EVERYONE, seed) for n in range(3)]
    deltas, trained = mean(updates, kind)
    total = sum(one.num_examples for one in updates)
    for name in SHAPES:
        assert trained[name].all()
        # sum_n |D_n| delta_n / sum_n |D_n| has the same bits, because the float64 sums have the same order.
        expected = torch.zeros(SHAPES[name], dtype=torch.float64)
        for one in updates:
            expected += one.num_examples * one.tensors[name].double()
        assert torch.equal(deltas[name], expected / total)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_both_kinds_agree_with_their_formula(power: float):
    updates = cohort(11, num_clients=5)
    all_examples = sum(one.num_examples for one in updates)
    for kind in AGGREGATIONS:
        deltas, _ = mean(updates, kind, power)
        for name in ("blocks.1.router", "blocks.1.up"):
            for m in range(M):
                top, bottom = torch.zeros(SHAPES[name][1:], dtype=torch.float64), 0.0
                for one in updates:
                    if m not in one.experts[1]:
                        continue
                    share = one.shares[1][one.experts[1].index(m)]
                    weight = one.num_examples * (share**power if kind == "per-expert" else 1.0)
                    top, bottom = top + weight * delta_of(one, name, m), bottom + weight
                bottom = all_examples if kind == "fedavg" else bottom
                torch.testing.assert_close(deltas[name][m], top / bottom if bottom else top)


def test_fedavg_dilutes_an_expert_by_clients_that_did_not_train_it():
    # Client 0 (30 examples) trains expert 2, and client 1 (10 examples) does not: 30 / (30 + 10) of the delta remains.
    updates = [update(0, (2,), 0, num_examples=30), update(1, (4,), 0, num_examples=10)]
    own = updates[0].tensors["blocks.1.up"][0].double()
    torch.testing.assert_close(mean(updates, "fedavg")[0]["blocks.1.up"][2], 0.75 * own)
    torch.testing.assert_close(mean(updates, "per-expert")[0]["blocks.1.up"][2], own)


def test_activation_power_weighs_by_the_share_of_slots():
    """Client 0: 10 examples, share 1/4, delta 1. Client 1: 40 examples, share 1/2, delta 6.

    gamma = 0: weights 10 and 40, (10 + 240) / 50 = 5.
    gamma = 1: weights 2.5 and 20, (2.5 + 120) / 22.5 = 49 / 9.
    gamma = 2: weights 0.625 and 10, (0.625 + 60) / 10.625 = 97 / 17.
    """
    shapes = {"blocks.0.up": torch.Size((1, 1, 1))}
    for power, expected in ((0.0, 5.0), (1.0, 49 / 9), (2.0, 97 / 17)):
        total = WeightedSum(shapes, activation_power=power)
        for client_id, examples, share, delta in ((0, 10, 0.25, 1.0), (1, 40, 0.5, 6.0)):
            one = {"blocks.0.up": torch.full((1, 1, 1), delta)}
            total.add(ClientUpdate(1, client_id, examples, one, {0: (0,)}, {0: (share,)}))
        assert total.mean()[0]["blocks.0.up"].item() == pytest.approx(expected, rel=1e-14)


def test_the_head_is_averaged_over_every_client_whatever_its_experts():
    updates = [update(0, (), 0, num_examples=30), update(1, (4,), 0, num_examples=10)]
    expected = sum(w * one.tensors["head.weight"].double() for w, one in zip((0.75, 0.25), updates, strict=True))
    for kind in AGGREGATIONS:
        torch.testing.assert_close(mean(updates, kind, 2.0)[0]["head.weight"], expected)


def test_sums_keep_what_float32_would_lose():
    # In float32, 2^25 + 1 = 2^25, so the small delta would be lost.
    shapes = {"head.bias": torch.Size((1,))}
    total = WeightedSum(shapes)
    for client_id, delta in enumerate((2.0**25, 1.0, -(2.0**25))):
        total.add(ClientUpdate(1, client_id, 1, {"head.bias": torch.tensor([delta])}))
    assert total.mean()[0]["head.bias"].item() == pytest.approx(1 / 3)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'per-expert'"):
        WeightedSum(SHAPES, "per-experts")
    with pytest.raises(InputError, match="did you mean 'adam'"):
        ServerOptimizer("adamw")


def test_plain_steps_add_the_delta():
    old = global_tensors()
    deltas, trained = mean([update(0, EVERYONE, 1)])
    new, state = ServerOptimizer("sgd", learning_rate=0.5).apply(old, deltas, trained, {})
    assert state == {}
    for name in SHAPES:
        rate = 1.0 if name.startswith("head.") else 0.5  # the head is averaged without an optimiser
        assert torch.equal(new[name], (old[name].double() + rate * deltas[name]).float())


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_each_expert_has_the_moments_of_its_own_rounds(kind: str):
    """Each expert matches a loop over only those rounds in which it was trained."""
    server = ServerOptimizer(kind, learning_rate=0.3, beta1=0.8, beta2=0.9, epsilon=1e-2)
    new, state = global_tensors(), {}
    rounds = [mean(cohort(seed, num_clients=2)) for seed in range(5)]
    for deltas, trained in rounds:
        new, state = server.apply(new, deltas, trained, state)
    times = torch.stack([trained["blocks.1.up"] for _, trained in rounds]).sum(0)
    assert len(set(times.tolist())) > 2  # the experts were trained unequally often
    for name in ("blocks.1.router", "blocks.1.up"):
        for m in range(M):
            deltas_m = [deltas[name][m] for deltas, trained in rounds if trained[name][m]]
            expected = one_row(server, global_tensors()[name][m], deltas_m)
            torch.testing.assert_close(new[name][m], expected)
    plain = global_tensors()["head.weight"].double() + sum(deltas["head.weight"] for deltas, _ in rounds)
    torch.testing.assert_close(
        new["head.weight"].double(), plain, rtol=1e-6, atol=1e-6
    )  # five rounds of rounding to float32
    assert not any(name.startswith("head.") for name in state)


def one_row(server: ServerOptimizer, theta: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """Compute momentum or Adam for one row as in their papers, with -delta as the gradient."""
    m, v, theta = 0.0 * deltas[0] if deltas else 0.0, 0.0, theta.double()
    for t, delta in enumerate(deltas, start=1):
        if server.kind == "momentum":
            m = server.beta1 * m + delta
            theta = theta + server.learning_rate * m
            continue
        m = server.beta1 * m + (1 - server.beta1) * delta
        v = server.beta2 * v + (1 - server.beta2) * delta**2
        corrected_m, corrected_v = m / (1 - server.beta1**t), v / (1 - server.beta2**t)
        theta = theta + server.learning_rate * corrected_m / (corrected_v**0.5 + server.epsilon)
    return theta.float()


def test_adam_equals_torchs_adam_if_every_round_trains_every_expert():
    server = ServerOptimizer("adam", learning_rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-3)
    new, state = global_tensors(), {}
    theta = torch.nn.Parameter(new["blocks.1.up"].double())
    reference = torch.optim.Adam([theta], lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    for seed in range(4):
        deltas, trained = mean([update(n, EVERYONE, seed) for n in range(2)])
        new, state = server.apply(new, deltas, trained, state)
        theta.grad = -deltas["blocks.1.up"]
        reference.step()
    torch.testing.assert_close(new["blocks.1.up"], theta.detach().float())


def test_a_step_does_not_change_its_arguments():
    old = global_tensors()
    kept = {name: tensor.clone() for name, tensor in old.items()}
    server = ServerOptimizer("adam")
    _, state = server.apply(old, *mean(cohort(0)), {})
    kept_state = {name: tensor.clone() for name, tensor in state.items()}
    server.apply(old, *mean(cohort(1)), state)
    for before, after in ((kept, old), (kept_state, state)):
        assert sorted(before) == sorted(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("name", "block"), [("blocks.11.up", 11), ("blocks.0.router", 0), ("head.weight", None)])
def test_the_block_of_a_tensor_is_in_its_name(name: str, block: int | None):
    assert block_of(name) == block
