"""The frozen prefix: resuming in the middle of a model, and examples that bring its states along."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig
from torch import Tensor, nn

from fftmoe.backbones import (
    MeanPoolClassifier,
    attach_adapter,
    enable_resume,
    features,
    first_adapted_block,
    logits,
    prefix_states,
)
from fftmoe.backbones.prefix_cache import with_prefix
from fftmoe.data import evaluation_batches
from fftmoe.errors import InputError
from frozen_prefix import BLOCK, PLENTY, adapted, gradients
from models import FAMILIES, HIDDEN, LABELS, NUM_BLOCKS, VOCAB, token_examples, tokens


def mean_pooled(family: str) -> nn.Module:
    """The family's backbone under a `MeanPoolClassifier`."""
    model = FAMILIES[family].make()
    assert isinstance(model, transformers.PreTrainedModel)
    return MeanPoolClassifier(model.base_model, 3).requires_grad_(False).eval()


def assert_resumes(model: nn.Module, block: int, batch: dict[str, Tensor]) -> None:
    full = logits(model, batch)
    states = prefix_states(model, block, batch)
    enable_resume(model, block)
    resumed = logits(model, {**batch, "prefix_states": states})
    # The arithmetic is the same one on the same batch.
    assert torch.equal(resumed, full)
    pairs = zip(gradients(model, resumed), gradients(model, full), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(logits(model, batch), full)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_gives_the_whole_models_logits_and_gradients(family: str, block: int):
    assert_resumes(adapted(FAMILIES[family].make(), block), block, FAMILIES[family].batch())


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "xlm-roberta"])
def test_resuming_under_mean_pooling(family: str):
    assert_resumes(adapted(mean_pooled(family)), BLOCK, tokens())


def test_a_block_keeps_its_place_where_models_treat_blocks_by_position():
    """Qwen2 looks up each block's mask by number: here the last one attends to three tokens only."""
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=17,
        pad_token_id=0,
        use_sliding_window=True,
        sliding_window=3,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        id2label=LABELS,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Qwen2ForSequenceClassification(config).requires_grad_(False).eval()
    assert_resumes(adapted(model), BLOCK, tokens())


def test_a_bfloat16_backbone_loses_nothing_in_float32_states(tmp_path: Path):
    model, examples = adapted(FAMILIES["bert"].make().to(torch.bfloat16)), token_examples(7, 3)
    cached = with_prefix(model, BLOCK, examples, tmp_path, PLENTY)
    (rows,) = evaluation_batches(examples, 7)
    assert torch.equal(logits(model, cached.batch(rows)), logits(model, examples.batch(rows)))


def test_earlier_blocks_do_not_run_and_later_blocks_do_not_run_for_their_states():
    model = adapted(FAMILIES["bert"].make())
    layers = model.get_submodule("base_model.model.bert.encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    ran: list[int] = []
    for number, layer in enumerate(layers):
        layer.get_submodule("attention").register_forward_hook(lambda *_, number=number: ran.append(number))
    states = prefix_states(model, BLOCK, tokens())
    assert ran == [0, 1]
    assert not states.requires_grad
    enable_resume(model, BLOCK)
    ran.clear()
    logits(model, {**tokens(), "prefix_states": states})
    assert ran == [2]
    ran.clear()
    logits(model, tokens())
    assert ran == [0, 1, 2]


def test_a_failed_pass_leaves_the_model_whole():
    model = adapted(FAMILIES["bert"].make())
    full = logits(model, tokens())
    enable_resume(model, BLOCK)
    with pytest.raises(AssertionError):
        logits(model, {**tokens(), "prefix_states": torch.zeros(2, 5, HIDDEN)})
    assert torch.equal(logits(model, tokens()), full)


def test_a_prepared_model_has_and_saves_the_same_parts():
    model = adapted(FAMILIES["bert"].make())
    before = [name for name, _ in model.named_modules()], list(model.state_dict())
    enable_resume(model, BLOCK)
    assert ([name for name, _ in model.named_modules()], list(model.state_dict())) == before


def test_what_cannot_be_resumed_is_refused():
    model = adapted(FAMILIES["bert"].make())
    for block in (0, 3):
        with pytest.raises(InputError, match=f"block={block}, but the model has 3 blocks; choose between 1 and 2"):
            enable_resume(model, block)
    with pytest.raises(InputError, match="call enable_resume"):
        logits(model, {**tokens(), "prefix_states": torch.zeros(2, 7, HIDDEN)})
    with pytest.raises(InputError, match="block 1 is adapted, and block 2 depends on what it computes"):
        prefix_states(adapted(FAMILIES["bert"].make(), 1).requires_grad_(False), 2, tokens())
    trained = adapted(FAMILIES["bert"].make())
    trained.get_parameter("base_model.model.bert.embeddings.LayerNorm.weight").requires_grad_(True)
    with pytest.raises(InputError, match=r"embeddings\.LayerNorm\.weight is trained, and block 2 depends on what"):
        prefix_states(trained, 2, tokens())
    with pytest.raises(InputError, match="does not know where a None model keeps its blocks"):
        enable_resume(nn.Linear(2, 3), 1)
    with pytest.raises(InputError, match="dropout"):
        enable_resume(model.train(), BLOCK)


def test_the_first_adapted_block_is_found_for_every_kind_of_adapter():
    assert first_adapted_block(adapted(FAMILIES["gpt2"].make(), 1)) == 1
    lora = LoraConfig(target_modules=["query"], layers_to_transform=[1, 2])
    model = attach_adapter(FAMILIES["bert"].make(), lora)
    assert first_adapted_block(model) == 1
    assert_resumes(model, 1, tokens())
    assert first_adapted_block(FAMILIES["vit"].make()) == NUM_BLOCKS - 1  # only a head
    assert first_adapted_block(nn.Linear(2, 3)) == 0


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
def test_features_are_what_the_last_head_module_reads(family: str):
    model, batch = adapted(FAMILIES[family].make()), FAMILIES[family].batch()
    read = features(model, batch)
    assert read.shape == (2, HIDDEN)
    head = model.get_submodule("base_model.model.classifier")
    assert torch.equal(head(read), logits(model, batch))
    enable_resume(model, BLOCK)
    assert torch.equal(features(model, {**batch, "prefix_states": prefix_states(model, BLOCK, batch)}), read)


def test_features_of_mean_pooling_are_its_own():
    model = mean_pooled("roberta")
    assert isinstance(model, MeanPoolClassifier)
    assert torch.equal(features(adapted(model), tokens()), model.features(**tokens()))


def test_features_need_a_head_that_reads_one_vector():
    for family in ("roberta", "llama"):
        with pytest.raises(InputError, match=r"reads a sequence .* set backbone.pooling to mean"):
            features(adapted(FAMILIES[family].make()), tokens())
    model = FAMILIES["bert"].make()
    assert isinstance(model, transformers.PreTrainedModel)
    with pytest.raises(InputError, match="has no classification head; load it for a task"):
        features(model.base_model, tokens())
