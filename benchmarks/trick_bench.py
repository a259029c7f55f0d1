"""Local training with each of our optimisations on or off.

`one_after_another` is a training loop of this benchmark in which every optimisation is a switch. The model, the losses,
the learning rates and the session that builds the update are fftmoe's own, so the rows of a table differ in the
optimisations only. `product` and `at_once` are fftmoe's own loops.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of, first_adapted_block, logits, on_device, place
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.client.stack import update_stack
from fftmoe.client.training import make_optimizers
from fftmoe.client.update import local_batches, token_mask, update_client
from fftmoe.config import Recipe
from fftmoe.data import Examples, TokenizedText
from fftmoe.records import ClientPlan, ClientUpdate, Tensors
from fftmoe.rng import numpy_generator
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.judged import make_loss
from tricks import PaddedTo, Tricks


@dataclass(frozen=True)
class Bench:
    """Clients that can train with any optimisations; values per client are sequences.

    Attributes:
        texts: the examples without cached states. cached: with the states that the blocks compute in a dtype.
        longest: tokens that are allowed, to which the naive stack pads.
        cache_dir: where states are kept.
    """

    experiment: Experiment
    texts: TokenizedText
    cached: Mapping[torch.dtype, Examples]
    longest: int
    plans: Sequence[ClientPlan]
    sent: Sequence[Tensors]
    rows: Sequence[np.ndarray]
    cache_dir: Path

    def use(self, tricks: Tricks) -> Examples:
        """Prepare the model and the examples for these optimisations."""
        model = self.experiment.model
        place(model, device_of(model), tricks.dtype)
        for moe in adapter.blocks(model).values():
            moe.compute = "auto" if tricks.fast_compute else "loop"
        examples = self.cached[tricks.dtype] if tricks.cached else self.texts
        return examples if tricks.dynamic else PaddedTo(examples, self.longest)

    def one_after_another(self, tricks: Tricks) -> list[list[float]]:
        """Train every client; return the losses of its steps."""
        examples = self.use(tricks)
        each = zip(self.plans, self.sent, self.rows, strict=True)
        return [_train(self.experiment, tricks, examples, *client) for client in each]

    def product(self, tricks: Tricks) -> list[ClientUpdate]:
        """Run fftmoe's own loop with one client after another; most optimisations are always on in it."""
        examples, head = self.use(tricks), self.head
        model, method = self.experiment.model, self.experiment.method
        each = zip(self.plans, self.sent, self.rows, strict=True)
        return [update_client(model, method, head, p, s, {}, examples, r)[0] for p, s, r in each]

    def at_once(self, tricks: Tricks) -> list[ClientUpdate]:
        """Run fftmoe's own loop with all clients in one batch."""
        examples, none = self.use(tricks), [{} for _ in self.plans]
        model, method = self.experiment.model, self.experiment.method
        updates = update_stack(model, method, self.head, self.plans, self.sent, none, examples, self.rows)  # type: ignore[arg-type]
        return [update for update, _ in updates]

    @property
    def head(self) -> Any:
        """Return the recipe's loss."""
        return make_loss(self.experiment.recipe)

    def tokens(self, tricks: Tricks) -> int:
        """Count the positions that all steps of all clients compute, including padding."""
        total = 0
        for plan, rows in zip(self.plans, self.rows, strict=True):
            for batch in batches(tricks, plan, rows, self.texts):
                longest = int(self.texts.lengths[batch].max()) if tricks.dynamic else self.longest
                total += len(batch) * longest
        return total

    def build_cache(self, dtype: torch.dtype, examples: int) -> None:
        """Compute the states of so many training examples as if for the first time.

        They are computed in batches of like length, which among few examples are not alike.
        """
        model = self.experiment.model
        place(model, device_of(model), dtype)
        texts = self.experiment.train.select(np.arange(examples))
        folder = self.cache_dir / f"again-{time.monotonic_ns()}"
        built = with_prefix(model, first_adapted_block(model), texts, folder, 2**40)
        built.path.unlink()  # type: ignore[attr-defined]
        folder.rmdir()


def prepare(recipe: Recipe, lengths: tuple[int, int], clients: int, examples: int, cache_dir: Path) -> Bench:
    """Clients with random texts of the recipe's data.

    Args:
        recipe: its batches and steps; how it partitions does not matter.
        lengths: least and greatest tokens of a text.
        examples: of each client.
        cache_dir: where states are kept.
    """
    assert recipe.engine.prefix_cache == "off"  # it is a trick here
    experiment = compose(recipe)
    model, method = experiment.model, experiment.method
    fitting = ((experiment.train.lengths >= lengths[0]) & (experiment.train.lengths <= lengths[1])).nonzero().flatten()
    chosen = numpy_generator(0, "texts").choice(fitting.numpy(), clients * examples, replace=False)
    texts = experiment.train.select(chosen)
    assert isinstance(texts, TokenizedText)
    cached: dict[torch.dtype, Examples] = {}
    for dtype in (torch.float32, torch.bfloat16):
        place(model, device_of(model), dtype)
        cached[dtype] = with_prefix(model, first_adapted_block(model), texts, cache_dir, 2**40)
        assert cached[dtype] is not texts, "nothing was cached"
    budgets = dict.fromkeys(range(clients), experiment.largest)
    state = method.init(model)
    # An untrained adapter adds nothing, and the check would not see it.
    source = torch.Generator().manual_seed(0)
    trained = {
        name: torch.randn(tensor.shape, generator=source) * 0.02 if name.endswith(".down") else tensor
        for name, tensor in state.tensors.items()
    }
    state = replace(state, tensors=trained)
    method = replace(method, budgets=budgets)  # type: ignore[type-var]
    plans = plan_round(method, state, 1, range(clients), budgets, experiment.training, recipe.seed).clients
    sent = [method.download(state, plan) for plan in plans]
    rows = np.split(np.arange(clients * examples), clients)
    experiment = replace(experiment, method=method)
    return Bench(experiment, texts, cached, recipe.data.max_length, plans, sent, rows, cache_dir)


def batches(tricks: Tricks, plan: ClientPlan, rows: np.ndarray, examples: Examples) -> list[Tensor]:
    """Return the rows of every step."""
    training = replace(plan.training, group_by_length=tricks.like_length)
    return local_batches(replace(plan, training=training), rows, examples)


def _train(
    experiment: Experiment, tricks: Tricks, examples: Examples, plan: ClientPlan, sent: Tensors, rows: np.ndarray
) -> list[float]:
    model, head = experiment.model, make_loss(experiment.recipe)
    losses = []
    with experiment.method.session(model, plan, sent, {}) as session, ExitStack() as stack:
        if tricks.input_gradients:
            embeddings = next(module for module in model.modules() if isinstance(module, nn.Embedding))
            hook = embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_(True))
            stack.callback(hook.remove)
        optimizers = make_optimizers(session.parameters, plan.training)
        if not tricks.fused:
            optimizers = [_plain(optimizer) for optimizer in optimizers]
        inputs = list(session.parameters.values()) if tricks.pruned else None
        for step in batches(tricks, plan, rows, examples):
            batch = on_device(model, examples.batch(step))
            task_loss = head.loss(logits(model, batch), batch["labels"])
            (task_loss + session.penalty(token_mask(batch))).backward(inputs=inputs)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(task_loss.detach())
        session.finish(len(rows), {})
    return torch.stack(losses).tolist()


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the same optimizer with torch's default settings."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return optimizer
    (group,) = optimizer.param_groups
    return torch.optim.AdamW(group["params"], lr=group["lr"], weight_decay=group["weight_decay"])
