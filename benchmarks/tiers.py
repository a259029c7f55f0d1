"""Measure the cost of each budget tier on live objects: `python benchmarks/tiers.py [recipe]`.

Bytes: the messages of one round. Memory: the tensors of the adapter and head in training (weights, gradients,
optimiser moments). FLOPs: counted by torch on one batch, backbone with adapter minus backbone without.
"""

import argparse
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.backbones import logits
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import token_mask
from fftmoe.config import load_recipe
from fftmoe.records import Budget, ClientPlan, ServerState, pack_plan, pack_update
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_loss


def measure(experiment: Experiment, state: ServerState, tier: Budget) -> dict[str, float]:
    method, model = experiment.method, experiment.model
    client_id = next(c for c, budget in experiment.budgets.items() if budget == tier)
    plan = plan_round(method, state, 1, [client_id], experiment.budgets, experiment.training, 0).clients[0]
    tensors = method.download(state, plan)
    rows = experiment.partition.indices[client_id][: experiment.training.batch_size]
    batch = experiment.train.batch(rows)
    head = make_loss(experiment.recipe)
    with method.session(model, plan, tensors, {}) as session:
        parameters = list(session.parameters.values())
        optimizers = make_optimizers(session.parameters, experiment.training)
        with FlopCounterMode(display=False) as counter:
            loss = head.loss(logits(model, batch), batch["labels"]) + session.penalty(token_mask(batch))
            loss.backward(inputs=parameters)
        for optimizer in optimizers:
            optimizer.step()
        moments = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
        live = [*parameters, *(p.grad for p in parameters if p.grad is not None), *moments]
        update, _ = session.finish(len(rows), {"loss": 0.0})
    return {
        "top_k": tier.top_k,
        "experts": tier.experts,
        "bytes_down": len(pack_plan(plan, tensors)),
        "bytes_up": len(pack_update(update)),
        "weights_bytes": sum(p.nbytes for p in parameters),
        "training_bytes": sum(t.nbytes for t in live),
        "step_flops": counter.get_total_flops(),
        "adapter_flops": counter.get_total_flops() - backbone_flops(experiment, plan, batch),
        "tokens": batch["input_ids"].numel(),
    }


def backbone_flops(experiment: Experiment, plan: ClientPlan, batch: dict[str, torch.Tensor]) -> int:
    """Count the same step without adapters; its backward pass still reaches the first adapted block."""
    model = experiment.model
    first = min(plan.experts)
    layers = [module for name, module in model.named_modules() if name.endswith(f"layer.{first}.output")]
    hook = layers[0].register_forward_pre_hook(partial(_require_gradient))
    try:
        with FlopCounterMode(display=False) as counter, model.disable_adapter():
            output = logits(model, batch)
            output.sum().backward()
    finally:
        hook.remove()
    return counter.get_total_flops()


def _require_gradient(module: torch.nn.Module, inputs: tuple) -> tuple:
    hidden, residual = inputs
    return hidden, residual.detach().requires_grad_()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="paper")
    arguments = parser.parse_args()
    # The loop computes only what was routed, and torch can count its products.
    experiment = compose(load_recipe(arguments.recipe, [TRAINED_HEAD, "adapter.compute=loop"]))
    state = experiment.method.init(experiment.model)
    tiers = {tier.name: measure(experiment, state, tier) for tier in experiment.tiers}
    result = {"recipe": arguments.recipe, "machine": machine(), "tiers": tiers}
    write_result(RESULTS / "tiers.json", result, "tiers")
    header = ["tier", "k", "experts", "KiB down", "KiB up", "adapter KiB", "in training KiB", "adapter MFLOP/token"]
    header.append("share of the step")
    rows = [
        [
            name,
            str(t["top_k"]),
            str(t["experts"]),
            *(f"{t[key] / 1024:.0f}" for key in ("bytes_down", "bytes_up", "weights_bytes", "training_bytes")),
            f"{t['adapter_flops'] / t['tokens'] / 1e6:.3f}",
            f"{t['adapter_flops'] / t['step_flops']:.1%}",
        ]
        for name, t in tiers.items()
    ]
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
