"""The adapter inside other people's loops: text generation, the compiler, several processes."""

import multiprocessing
import os
import shutil
import socket
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decoders import DECODERS, END, decoder, texts
from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.backbones import attach_adapter
from fftmoe.errors import InputError
from fftmoe.rng import generator
from summation import additions

every_decoder = pytest.mark.parametrize("family", DECODERS)


def adapted(family: str, **changes: Any) -> Any:
    chosen: dict[str, Any] = {"num_experts": 5, "expert_dim": 8, "top_k": 2, "compute": "wide"}
    model = attach_adapter(decoder(family), MoeAdapterConfig(**(chosen | changes)))
    for block, moe in blocks(model).items():
        nn.init.normal_(moe.down, generator=generator(1, block))
        nn.init.normal_(moe.router.weight, std=3.0, generator=generator(2, block))
    return model


def inputs(num_texts: int, side: str = "right") -> dict[str, Tensor]:
    return {name: value for name, value in texts(num_texts, 7, side).items() if name != "labels"}


@every_decoder
def test_generation_with_its_cache_equals_whole_forward_passes(family: str):
    model, prompts = adapted(family), inputs(3, "left")
    found = model.generate(**prompts, max_new_tokens=9, do_sample=False, use_cache=True)
    plain = decoder(family).generate(**prompts, max_new_tokens=9, do_sample=False, use_cache=True)
    assert found.tolist() != plain.tolist(), "the adapter has no effect"
    for row, prompt, mask in zip(found, prompts["input_ids"], prompts["attention_mask"], strict=True):
        ids = prompt[mask.bool()][None]
        for expected in row[len(prompt) :].tolist():
            with torch.no_grad():
                chosen = int(model(input_ids=ids).logits[0, -1].argmax())
            assert chosen == expected
            if chosen == END:
                break
            ids = torch.cat([ids, torch.tensor([[chosen]])], 1)


@every_decoder
def test_merging_is_refused_and_unloading_gives_the_backbone(family: str):
    model, batch = adapted(family), inputs(3)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match="cannot be merged"):
            merge()
    with torch.no_grad():
        expected = decoder(family)(**batch).logits
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, expected)
        assert torch.equal(model.unload()(**batch).logits, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("compute", ["wide", "auto"])
def test_the_compiler_makes_one_graph_of_it(compute: str):
    # A pool so large that `auto` would choose `grouped` otherwise.
    sizes = {"compute": compute, "num_experts": 64, "expert_dim": 16}
    model, batch = adapted("llama", blocks=[1], **sizes), inputs(40)
    assert torch._dynamo.explain(model)(**batch).graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    found = compiled(**batch).logits
    expected = model(**batch).logits
    # Fused kernels add in another order: a thousand additions in float32, relative to the largest.
    close = partial(torch.testing.assert_close, rtol=0)
    close(found, expected, atol=additions(1000, expected))
    (moe,) = blocks(model).values()
    gradients = [torch.autograd.grad(logits.square().mean(), moe.router.weight)[0] for logits in (found, expected)]
    close(*gradients, atol=additions(1000, gradients[1]))


def _part(rank: int) -> dict[str, Tensor]:
    return {name: value[rank::2] for name, value in texts(4, 7).items()}


def _gradients(model: Any) -> dict[str, Any]:
    """As arrays, which go through a pipe whole."""
    whole = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    full = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in whole.items()}
    return {n: g.detach().numpy().copy() for n, g in full.items()}


def _process(rank: int, kind: str, port: int, pipe: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = adapted("llama", balance_strength=0.7, z_strength=0.03).train()
    called: Any = model
    if kind == "ddp":
        called = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in model.get_base_model().model.layers if kind == "fsdp by block" else ():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    called(**_part(rank)).loss.backward()
    gradients = _gradients(model)
    if rank == 0:
        pipe.send(gradients)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp by block"])
def test_two_processes_have_the_mean_of_their_gradients(kind: str):
    expected = adapted("llama", balance_strength=0.7, z_strength=0.03).train()
    ((expected(**_part(0)).loss + expected(**_part(1)).loss) / 2).backward()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    processes = [context.Process(target=_process, args=(rank, kind, port, there)) for rank in (0, 1)]
    for process in processes:
        process.start()
    try:
        assert here.poll(300), "no gradients came"
        found = here.recv()
    finally:
        for process in processes:  # leaving the group, each would wait for the other
            process.kill()
            process.join()
    wanted = _gradients(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # A thousand additions in float32, by processes with another number of threads, relative to the largest.
        np.testing.assert_allclose(found[name], value, rtol=0, atol=additions(1000, torch.from_numpy(value)))
