"""On one CUDA GPU: the updates of a CPU, for one client and for several in a batch, without waiting within a step."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.compute import ACTIVATIONS, COMPUTES
from fftmoe.adapter.stacked import stacked
from fftmoe.backbones import attach_adapter, load_backbone, logits, on_device, place
from fftmoe.client.stack import update_stack
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import token_mask, update_client
from fftmoe.head import make_head
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, Training
from fftmoe.rng import generator
from fftmoe.server.plan import plan_round
from models import HIDDEN, VOCAB, token_examples

pytestmark = pytest.mark.gpu

M, H, C = 8, 16, 3
BUDGET = Budget("same", 2, 8, (1, 2))
TRAINING = Training(batch_size=5, learning_rate=0.01, head_learning_rate=0.5, local_steps=3)
EXAMPLES = token_examples(30, seed=1)
ROWS = np.split(np.arange(30), C)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """TensorFloat-32 has 10 bits, and would hide a wrong result within its own error."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def model_on(device: str, folder: Path) -> Any:
    config = MoeAdapterConfig(num_experts=M, expert_dim=H, top_k=1, blocks="last-2", shared_rank=2)
    model = attach_adapter(load_backbone(str(folder), num_labels=3), config)
    for block, moe in adapter.blocks(model).items():
        torch.nn.init.normal_(moe.down, std=0.1, generator=generator(block, "down"))
    return place(model, torch.device(device), torch.float32)


def method() -> FftMoe:
    budgets = dict.fromkeys(range(C), BUDGET)
    return FftMoe(budgets=budgets, shape=ExpertShape(HIDDEN, H), num_experts=M)


def updates(model: Any, together: bool) -> list[Any]:
    moe, head = method(), make_head("averaged")
    state = moe.init(model)
    plans = plan_round(moe, state, 1, range(C), moe.budgets, TRAINING, seed=5).clients
    sent = [moe.download(state, plan) for plan in plans]
    if together:
        return [update for update, _ in update_stack(model, moe, head, plans, sent, [{}] * C, EXAMPLES, ROWS)]
    each = zip(plans, sent, ROWS, strict=True)
    return [update_client(model, moe, head, p, t, {}, EXAMPLES, rows)[0] for p, t, rows in each]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(COMPUTES))
def test_every_compute_equals_the_loop_on_the_cpu(name: str, dtype: torch.dtype):
    source = torch.Generator().manual_seed(3)
    shapes = ((53, 64), (53, 2), (M, H, 64), (M, H, 64))
    x, gates, up, down = (torch.randn(shape, generator=source) for shape in shapes)
    ids = torch.rand(53, M, generator=source).topk(2).indices
    expected = COMPUTES["loop"](x, gates, ids, up, down, ACTIVATIONS["gelu"])
    on_gpu = [t.to("cuda", dtype) for t in (x, gates, up, down)]
    found = COMPUTES[name](on_gpu[0], on_gpu[1], ids.cuda(), on_gpu[2], on_gpu[3], ACTIVATIONS["gelu"])
    # Sums of 64 products of numbers of size 1; bfloat16 rounds each to 2^-9.
    tolerance = 1e-3 if dtype == torch.float32 else 0.02 * float(expected.abs().max())
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.0, atol=tolerance)


def test_more_groups_than_one_product_takes():
    clients, experts = 5, 300
    source = torch.Generator().manual_seed(3)
    shapes = ((clients, 7, 32), (clients, 7, 2), (clients, experts, 16, 32), (clients, experts, 16, 32))
    x, gates, up, down = (torch.randn(shape, generator=source).cuda().bfloat16() for shape in shapes)
    ids = torch.rand(clients, 7, experts, generator=source).topk(2).indices.cuda()
    found = stacked("grouped", x, gates, ids, up, down, ACTIVATIONS["gelu"])
    for c in range(clients):
        single = COMPUTES["grouped"](x[c], gates[c], ids[c], up[c], down[c], ACTIVATIONS["gelu"])
        torch.testing.assert_close(found[c], single)


@pytest.mark.parametrize("together", [False, True], ids=["one after another", "in one batch"])
def test_updates_equal_those_of_the_cpu(backbone_folder: Path, together: bool):
    on_cpu = updates(model_on("cpu", backbone_folder), together=False)
    on_gpu = updates(model_on("cuda", backbone_folder), together)
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert dataclasses.replace(gpu, tensors={}, metrics={}, shares={}) == dataclasses.replace(
            cpu, tensors={}, metrics={}, shares={}
        )
        assert all(tensor.device.type == "cpu" for tensor in gpu.tensors.values())
        for name, tensor in cpu.tensors.items():
            # Adam makes a step of full size of a gradient that is nothing but rounding, in single coordinates.
            assert (gpu.tensors[name] - tensor).norm() < 0.02 * tensor.norm() + 1e-6, name


@pytest.mark.parametrize("compute", ["wide", "grouped"])
def test_a_step_never_waits_for_the_gpu(compute: str):
    """A model of width 32, because `grouped` takes multiples of 8."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 3}
    config = transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=17, **sizes)
    adapted = MoeAdapterConfig(num_experts=M, expert_dim=H, top_k=1, blocks="last-2", compute=compute, shared_rank=2)
    backbone = transformers.BertForSequenceClassification(config).requires_grad_(False).eval()
    model, moe = place(attach_adapter(backbone, adapted), torch.device("cuda"), torch.bfloat16), method()
    state, head = moe.init(model), make_head("averaged")
    plan = plan_round(moe, state, 1, [0], moe.budgets, TRAINING, seed=5).clients[0]
    batch = on_device(model, EXAMPLES.batch(ROWS[0]))
    with moe.session(model, plan, moe.download(state, plan), {}) as session:
        parameters = list(session.parameters.values())
        optimizers = make_optimizers(session.parameters, TRAINING)

        def step() -> None:
            loss = head.loss(logits(model, batch), batch["labels"]) + session.penalty(token_mask(batch))
            loss.backward(inputs=parameters)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        step()  # the first one loads kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
