"""The losses of a language model's tokens: those of transformers, with logits at learned places only."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, enable_resume, logits, prefix_states, token_losses
from fftmoe.backbones.lora import lora_config
from models import FAMILIES, VOCAB, tokens

DECODERS = (
    "bloom falcon gemma gemma2 gemma3_text gpt2 gpt_neox llama mistral olmo2 phi phi3 qwen2 qwen2_moe qwen3 smollm3"
).split()
LEARNED = 5  # of the batch, without the first token of the first text


def language_model(family: str) -> Any:
    config: Any = FAMILIES[family].make().config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = transformers.AutoModelForCausalLM.from_config(config)
    made.get_output_embeddings().weight.data.mul_(40)  # so that a bound on logits matters
    return made.requires_grad_(False).eval()


def labelled() -> dict[str, Tensor]:
    """The first text's first token has a label that nothing predicts; of the second text two tokens are learned."""
    batch = tokens()
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, [0, 4, 5, 6]] = batch["input_ids"][0, [0, 4, 5, 6]]
    labels[1, [1, 3]] = batch["input_ids"][1, [1, 3]]
    return {**batch, "labels": labels}


def with_all_logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The losses [B, S] from the logits of all places."""
    found = F.cross_entropy(logits(model, batch)[:, :-1].mT, batch["labels"][:, 1:], reduction="none")
    return F.pad(found, (1, 0))


@pytest.mark.parametrize("family", DECODERS)
def test_they_are_those_of_all_logits(family: str):
    """Also where a model bounds its logits, as Gemma 2 does."""
    model, batch = language_model(family), labelled()
    expected = with_all_logits(model, batch)
    for most in (10**6, 2 * VOCAB, 1):
        # The same products in other shapes, which a processor adds in another order.
        torch.testing.assert_close(token_losses(model, batch, most), expected, rtol=1e-5, atol=1e-5)
    assert (expected != 0).sum() == LEARNED
    mean = model(**batch).loss
    torch.testing.assert_close(token_losses(model, batch).sum() / LEARNED, mean, rtol=1e-5, atol=1e-6)
    assert logits(model, batch).shape == (2, 7, VOCAB)  # the model is as it was


def adapted(kind: str) -> Any:
    if kind == "experts":
        config: Any = MoeAdapterConfig(num_experts=5, expert_dim=3, top_k=2, blocks=[1, 2], shared_rank=3, seed=5)
    else:
        config = lora_config(3, 2.0, ["q_proj", "v_proj"], blocks=[1, 2])
    model = attach_adapter(language_model("llama"), config)
    with torch.no_grad():  # B is zero at first, and then nothing depends on A
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return model


@pytest.mark.parametrize("most", [10**6, 2 * VOCAB])
@pytest.mark.parametrize("kind", ["experts", "low rank"])
def test_their_gradients_are_those_of_all_logits(kind: str, most: int):
    model, batch = adapted(kind), labelled()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(with_all_logits(model, batch).sum(), [*trained.values()])
    found = torch.autograd.grad(token_losses(model, batch, most).sum(), [*trained.values()])
    for name, own, other in zip(trained, found, wanted, strict=True):
        # The sums run in another order; gradients are of about 1.
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert sum(bool(grad.any()) for grad in found) == len(found)


def test_with_cached_states_they_are_the_same():
    model, batch = adapted("experts"), labelled()
    expected = token_losses(model, batch)
    states = prefix_states(model, 1, batch)
    enable_resume(model, 1)
    torch.testing.assert_close(token_losses(model, {**batch, "prefix_states": states}), expected)


@pytest.mark.parametrize("most", [1, VOCAB, 3 * VOCAB, 10**6])
def test_logits_are_made_of_learned_places_only_and_in_chunks(most: int):
    model, batch = adapted("experts"), labelled()
    sizes: list[int] = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda _, __, output: sizes.append(output[..., 0].numel()))
    token_losses(model, batch, most).sum().backward()
    places, *chunks = sizes
    assert places == 2  # one for each text, which costs less than leaving the model in the middle
    rows = max(1, most // VOCAB)
    once = [len(part) for part in torch.arange(LEARNED).split(rows)]
    # With several chunks all are computed once more for their gradients, the last one first.
    assert chunks == (once if len(once) == 1 else [*once, *reversed(once)])


def test_a_batch_in_which_nothing_is_learned_has_no_loss_and_no_gradient():
    model, batch = adapted("experts"), labelled()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    losses = token_losses(model, batch)
    assert torch.equal(losses, torch.zeros(2, 7))
    losses.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(grad.any() for grad in gradients)
    assert not torch.equal(labelled()["labels"], batch["labels"])


def test_labels_are_not_changed():
    model, batch = language_model("llama"), labelled()
    token_losses(model, batch)
    assert torch.equal(batch["labels"], labelled()["labels"])
