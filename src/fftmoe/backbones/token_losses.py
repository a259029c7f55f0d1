"""Computes the losses of a language model's tokens. Logits are made only where a token is learned, some at a time.

A vocabulary is large: the logits of all places of a batch would take more memory, and often more time, than the blocks
below them, and most places are prompts and padding. So the model runs up to its last hidden states, the states before
learned tokens are taken out, and the model's own head reads these in chunks. With gradients, all chunks but a single
one are computed again in the backward pass, so that the logits of one chunk are in memory and no more.

Shape letters: B batch, S sequence, D hidden size, N learned tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import ModelOutput

from fftmoe.adapter.fourier import at_least_float32
from fftmoe.backbones.placement import computing
from fftmoe.backbones.prefix import model_inputs, resumed
from fftmoe.data import IGNORED

MOST_LOGITS = 2**24  # of a chunk: 64 MiB in float32, and in training three times as much


def token_losses(model: nn.Module, batch: Mapping[str, Tensor], most_logits: int = MOST_LOGITS) -> Tensor:
    """Return -log softmax(z_{t-1})[y_t] of every token t in nats, float32 [B, S]; 0 where the label is -100 or t is 0.

    Args:
        model: a causal language model of transformers, perhaps with an adapter.
        batch: its inputs and `labels` int64 [B, S]; perhaps with `prefix_states`, as for `logits`.
        most_logits: of a chunk.
    """
    labels_BS = batch["labels"].clone()
    labels_BS[:, :1] = IGNORED
    learned_BS = labels_BS != IGNORED
    states_BSD, kind = _last_states(model, batch)
    states_ND = states_BSD[:, :-1][learned_BS[:, 1:]]
    losses_BS = torch.zeros(labels_BS.shape, device=states_ND.device)
    if not len(states_ND):
        return losses_BS + states_ND.sum()  # 0, with gradients that are 0
    size = max(1, most_logits // int(_base(model).config.get_text_config().vocab_size))
    chunks = list(zip(states_ND.split(size), labels_BS[learned_BS].split(size), strict=True))
    again = len(chunks) > 1 and torch.is_grad_enabled()
    losses = [
        checkpoint(_losses, model, kind, *chunk, use_reentrant=False) if again else _losses(model, kind, *chunk)
        for chunk in chunks
    ]
    losses_BS[learned_BS] = torch.cat(losses)
    return losses_BS


def _last_states(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, type[ModelOutput]]:
    """Return the hidden states [B, S, D] that the head reads, and the type of output in which the model gets them.

    The head itself runs on one place of each text: that costs less than to leave the model in the middle.
    """
    base, read, kinds = _base(model), [], []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(arguments[0])
        # Contiguous: a product with a view of several texts copies the whole vocabulary for each of them.
        return (arguments[0][:, :1].contiguous(), *arguments[1:])

    with ExitStack() as hooks:
        decoder = getattr(base, base.base_model_prefix)
        hooks.callback(decoder.register_forward_hook(lambda *call: kinds.append(type(call[-1]))).remove)
        hooks.callback(base.get_output_embeddings().register_forward_pre_hook(keep).remove)
        with resumed(model, batch.get("prefix_states")), computing(model):
            model(**model_inputs(batch))
    return read.pop(), kinds.pop()


def _losses(model: nn.Module, kind: type[ModelOutput], states_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Return the losses [N] of tokens, given the states before them."""
    base = _base(model)
    ids = torch.zeros(1, len(states_ND), dtype=torch.int64, device=states_ND.device)
    with _only_head(base, kind(last_hidden_state=states_ND[None])), computing(model):
        logits_NV = at_least_float32(base(input_ids=ids, use_cache=False).logits[0])
    return F.cross_entropy(logits_NV, labels_N, reduction="none")


@contextmanager
def _only_head(base: Any, output: ModelOutput) -> Iterator[None]:
    """Reduce the model, within the context, to its head, with all that it does to logits, on top of this output."""
    name = base.base_model_prefix
    decoder = getattr(base, name)
    setattr(base, name, _Given(output))
    try:
        yield
    finally:
        setattr(base, name, decoder)


class _Given(nn.Module):
    def __init__(self, output: ModelOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: object, **__: object) -> ModelOutput:
        return self.output


def _base(model: Any) -> Any:
    """Return the model of transformers, without the wrapper of PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
