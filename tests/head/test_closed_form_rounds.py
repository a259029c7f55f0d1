"""The closed-form head in a round: what each client measures and sends, and equality over partitions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from closed_form_heads import (
    BLOCKS,
    KINDS,
    LARGE,
    LIFTED,
    NUM_LABELS,
    SMALL,
    TRAINING,
    M,
    States,
    examples,
    exchanged,
    fft_moe,
    gcv_by_hat_matrix,
    mean_eigenvalue,
    moe_model,
    partitioned,
    ridge_by_lstsq,
    runtime,
)
from fftmoe.backbones import attach_adapter, head_inputs, head_parameters, load_backbone
from fftmoe.backbones.lora import lora_config, lora_modules
from fftmoe.client.sums import head_sums
from fftmoe.client.update import update_client
from fftmoe.head import HeadSums, make_head, solve_ridge
from fftmoe.head.closed_form import STRENGTHS
from fftmoe.methods.base import Method
from fftmoe.methods.fedsa_lora import FedSaLora
from fftmoe.methods.head_only import HeadOnly
from fftmoe.records import (
    names,
    pack_plan,
    pack_update,
    unpack_update,
)
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_sums, solve_head
from models import HIDDEN


@pytest.mark.parametrize("kind", KINDS)
def test_every_partition_gives_the_centralized_head(kind: str, backbone_folder: Path):
    model = moe_model(backbone_folder, KINDS[kind])
    solved = []
    for partition in map(partitioned, ("iid", "one class per client")):
        method = fft_moe(len(partition))
        state = method.init(model)
        new = solve_head(state, exchanged(runtime(model, method, partition), method, state, len(partition)))
        solved.append((new.tensors["head.weight"], new.tensors["head.bias"]))
        others = [name for name in state.tensors if not name.startswith("head.")]
        assert len(others) == 5 * len(BLOCKS)
        assert all(new.tensors[name] is state.tensors[name] for name in others)
        assert {n: t.shape for n, t in new.tensors.items()} == {n: t.shape for n, t in state.tensors.items()}
    # The centralized ridge, by other means, on the features of the global model as the largest tier uses it.
    method = fft_moe(1)
    method.install(model, method.init(model).tensors, LARGE)
    with torch.inference_mode():
        x = head_inputs(model, examples().batch(range(211)))
    labels = examples().labels
    assert x.shape == (211, KINDS[kind] or HIDDEN)
    strength = min(STRENGTHS, key=lambda s: gcv_by_hat_matrix(x, labels, s, NUM_LABELS))
    assert 0 < STRENGTHS.index(strength) < len(STRENGTHS) - 1
    central = ridge_by_lstsq(x, labels, strength, NUM_LABELS)
    # Features come from some hundred additions in float32, whose rounding adds up like a random walk: 16 units of the
    # last place. The condition number of the shrunk Gram matrix may multiply that.
    eigenvalues = torch.linalg.eigvalsh(HeadSums.of(x, labels, NUM_LABELS).gram) + strength * mean_eigenvalue(x)
    bound = 16 * 2**-24 * float(eigenvalues[-1] / eigenvalues[0]) * float(central[0].abs().max())
    for federated in solved:
        torch.testing.assert_close(federated, central, rtol=0, atol=bound)
    assert float((central[0][0] - central[0][1]).abs().max()) > 10 * bound  # swapped classes would be seen


def test_the_head_is_solved_on_the_adapted_features(backbone_folder: Path):
    model, partition = moe_model(backbone_folder, 0), partitioned("one client")
    method = fft_moe(1)
    state = dataclasses.replace(method.init(model), round=1)
    frozen = dataclasses.replace(
        state, tensors={n: torch.zeros_like(t) if n.endswith(".down") else t for n, t in state.tensors.items()}
    )
    handler = runtime(model, method, partition)
    adapted, plain = (solve_head(s, exchanged(handler, method, s, 1)).tensors["head.weight"] for s in (state, frozen))
    assert not torch.allclose(adapted, plain, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("trains_an_adapter", [True, False])
def test_in_local_training_a_client_computes_its_own_head_before_and_after(
    backbone_folder: Path, trains_an_adapter: bool
):
    """As in a federation of one client, compared with sums by hand for the untrained and the trained model."""
    rows, model = np.arange(3, 60), moe_model(backbone_folder, LIFTED)
    method: Method = fft_moe(1) if trains_an_adapter else HeadOnly()
    state = method.init(model)

    def own_head() -> list[Tensor]:
        weight, bias, _ = solve_ridge(HeadSums.from_tensors(head_sums(model, examples(), rows, NUM_LABELS)))
        return [weight, bias]

    plan = plan_round(method, state, 0, [0], {0: SMALL}, TRAINING, seed=5, task="alone").clients[0]
    sent = method.download(state, plan)
    method.personalize(model, sent, plan, {})
    before, found = own_head(), []

    def measure(measured: Any, own_labels: Tensor, client_id: int) -> dict[str, float]:
        assert torch.equal(own_labels, examples().labels[torch.from_numpy(rows)])
        found[:] = [p.detach().clone() for p in head_parameters(measured).values()]
        assert all(map(torch.equal, found, own_head()))
        return {"holdout_accuracy": 0.5}

    handler = runtime(model, method, [rows], measure=measure)
    update = unpack_update(handler([pack_plan(plan, sent)])[0])
    assert update.metrics["holdout_accuracy"] == 0.5
    assert not any(name.startswith("head.") for name in update.tensors)
    assert ("loss" in update.metrics) == trains_an_adapter
    assert all(map(torch.equal, found, before)) != trains_an_adapter
    if trains_an_adapter:  # from the head that it solved before, so the first step's loss is of that head
        one = dataclasses.replace(plan, training=dataclasses.replace(TRAINING, local_steps=1))
        first = unpack_update(handler([pack_plan(one, sent)])[0])
        solved = {**sent, "head.weight": before[0], "head.bias": before[1]}
        expected, _ = update_client(model, method, make_head("closed-form"), one, solved, {}, examples(), rows)
        assert first.metrics["loss"] == expected.metrics["loss"]
        assert all(torch.equal(t, expected.tensors[name]) for name, t in first.tensors.items())


def test_the_statistics_of_a_client_come_from_its_own_examples_and_cost_their_elements(backbone_folder: Path):
    model, partition = moe_model(backbone_folder, LIFTED), partitioned("iid")
    method = fft_moe(len(partition))
    state = method.init(model)
    updates = exchanged(runtime(model, method, partition), method, state, len(partition))
    labels = examples().labels
    elements = (LIFTED + 1) * (LIFTED + 2) // 2 + (LIFTED + 1) * NUM_LABELS + 6 * 16  # and the scores
    for update, rows in zip(updates, partition, strict=True):
        sums = HeadSums.from_tensors(update.tensors)
        assert update.num_examples == sums.num_items == len(rows)
        assert sums.moment[-1].tolist() == torch.bincount(labels[rows], minlength=NUM_LABELS).tolist()
        assert not update.experts
        assert not update.metrics
        assert 4 * elements < len(pack_update(update)) < 4 * elements + 512  # the header


def test_every_client_measures_all_experts_as_the_largest_tier_uses_them(backbone_folder: Path):
    model = moe_model(backbone_folder, 0)
    method = fft_moe(2)
    state = method.init(model)
    plan = plan_sums(dataclasses.replace(state, round=1), [0, 1], LARGE, TRAINING, seed=5)
    assert {client.task for client in plan.clients} == {"sums"}
    for client in plan.clients:
        assert client.budget == LARGE != method.budgets[client.client_id]
        assert client.experts == dict.fromkeys(BLOCKS, tuple(range(M)))
    # Before the first round only an adapter that adds something, of an earlier run, has to be sent.
    new = {name: torch.zeros_like(t) if names.is_last_layer(name) else t for name, t in state.tensors.items()}
    fresh = dataclasses.replace(state, tensors=new)
    (first,) = plan_sums(fresh, [0], LARGE, TRAINING, seed=5).clients
    assert method.download(fresh, first).keys() == {"head.weight", "head.bias"}
    (warm,) = plan_sums(state, [0], LARGE, TRAINING, seed=5).clients
    assert method.download(state, warm).keys() > {"head.weight", "head.bias", "blocks.1.up"}


def test_a_client_with_its_own_model_measures_that_model(backbone_folder: Path):
    backbone = load_backbone(str(backbone_folder), num_labels=NUM_LABELS)
    model = attach_adapter(backbone, lora_config(1, 2.0, ["intermediate.dense"], BLOCKS))
    method = FedSaLora(dict.fromkeys(range(2), LARGE), lora_modules(model))
    state = dataclasses.replace(method.init(model), round=1)
    states, partition = States(), [np.arange(100), np.arange(100, 211)]
    own = {f"lora.{path}.B": torch.randn(d_out, 2) for path, (_, d_out) in method.modules.items()}
    states.save(1, 1, own)
    updates = exchanged(runtime(model, method, partition, states), method, state, 2)
    for update, tensors in zip(updates, ({}, own), strict=True):
        method.install(model, state.tensors | tensors, LARGE)
        expected = HeadSums.from_tensors(head_sums(model, examples(), partition[update.client_id], NUM_LABELS))
        torch.testing.assert_close(HeadSums.from_tensors(update.tensors).gram, expected.gram, rtol=1e-6, atol=1e-4)
    method.install(model, state.tensors, LARGE)
    without = HeadSums.from_tensors(head_sums(model, examples(), partition[1], NUM_LABELS)).gram
    assert not torch.allclose(HeadSums.from_tensors(updates[1].tensors).gram, without, rtol=0.01)


def test_computing_statistics_changes_nothing_on_the_client(backbone_folder: Path):
    model, states = moe_model(backbone_folder, 0), States()
    method = fft_moe(1)
    state = method.init(model)
    handler = runtime(model, method, partitioned("one client"), states)
    first, second = (pack_update(exchanged(handler, method, state, 1)[0]) for _ in range(2))
    assert first == second
    assert states.kept == {}
