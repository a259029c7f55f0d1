"""The adapter under transformers' own Trainer: the routers' losses reach the optimiser, and the rest is as it was."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset

from decoders import DECODERS, decoder, texts
from fftmoe.adapter import MoeAdapterConfig, blocks, record_routing
from fftmoe.backbones import attach_adapter, load_adapter, load_backbone
from fftmoe.errors import InputError
from fftmoe.rng import generator
from models import FAMILIES
from summation import additions

BALANCE, Z = 0.7, 0.03
CLASSIFIERS = ("bert", "llama", "vit")


def crossed(values: list[Any]) -> list[Any]:
    """Every family with every value; `make test` takes each family and each value once."""
    quick = {(family, values[place % len(values)]) for place, family in enumerate(DECODERS)}
    return [
        pytest.param(family, value, marks=[] if (family, value) in quick else pytest.mark.slow)
        for family in DECODERS
        for value in values
    ]


def config(**changes: Any) -> MoeAdapterConfig:
    return MoeAdapterConfig(**({"num_experts": 5, "expert_dim": 4, "top_k": 2, "compute": "wide"} | changes))


def penalised(**changes: Any) -> MoeAdapterConfig:
    return config(balance_strength=BALANCE, z_strength=Z, **changes)


def adapted(backbone: Any, chosen: MoeAdapterConfig) -> Any:
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(backbone.config, "attention_probs_dropout_prob"):
        backbone.config.attention_probs_dropout_prob = 0.0
    model = attach_adapter(backbone, chosen)
    for block, moe in blocks(model).items():
        nn.init.normal_(moe.down, generator=generator(1, block))
        # Makes the load uneven: with the initial rows, all experts would be nearly equally likely for these states.
        nn.init.normal_(moe.router.weight, std=3.0, generator=generator(2, block))
    return model.train()


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: value[row] for name, value in self.batch.items()}


class Watching(transformers.TrainerCallback):
    """Keeps each step's gradients."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(**(usual | changes))


def stepped(model: Any, rows: dict[str, Tensor], folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """The gradients of the Trainer's first step, and the batches that it was made of."""
    watching, batches = Watching(), []

    def collate(examples: list[Any]) -> dict[str, Tensor]:
        batches.append(transformers.default_data_collator(examples))
        return dict(batches[-1])

    trainer = transformers.Trainer(
        model, arguments(folder, **changes), data_collator=collate, train_dataset=Rows(rows), callbacks=[watching]
    )
    trainer.train()
    # The loader reads a batch ahead.
    return watching.gradients[0], batches[: changes.get("gradient_accumulation_steps", 1)]


def penalty_by_hand(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits, and docs/math.md's losses with q = 1/M, token by token."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with record_routing(model) as read:
        logits = model(**inputs).logits
        routings = read()
    total = torch.zeros(())
    for routing in routings.values():
        real = batch["attention_mask"].flatten().bool() if "attention_mask" in batch else slice(None)
        probs, chosen, scores = routing.probs_TM[real], routing.expert_ids_TK[real], routing.logits_TM[real]
        shares = torch.tensor([(chosen == m).double().mean() for m in range(5)])
        balance = (5 * shares * probs.mean(0)).sum()
        total = total + BALANCE * balance + Z * (scores.exp().sum(-1).log() ** 2).mean()
    return logits, total / len(routings)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The same sums in another order: a thousand additions in float32 on the way to a gradient, relative to the
        # largest, because in a small one the terms cancel.
        bound = additions(1000, value)
        torch.testing.assert_close(found[name], value, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


def test_a_gradient_that_is_a_thousandth_too_long_is_no_rounding():
    gradients = {"up": torch.randn(7, 11, generator=torch.Generator().manual_seed(3))}
    with pytest.raises(AssertionError):
        assert_same({"up": 1.001 * gradients["up"]}, gradients)


def routers(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in gradients.items() if "router" in name}


@pytest.mark.parametrize(("family", "accumulated"), crossed([1, 3]))
def test_a_step_on_texts_is_by_the_mean_over_labels_and_the_mean_penalty(family: str, accumulated: int, tmp_path: Path):
    model = adapted(decoder(family), penalised())
    found, batches = stepped(model, texts(6, 11), tmp_path, gradient_accumulation_steps=accumulated)
    plain = adapted(decoder(family), config())
    # GPT-2's class names no kind of loss, and for Trainer all its labels count: none is left out for the shift.
    counted = [int((b["labels"] if family == "gpt2" else b["labels"][:, 1:]).ne(-100).sum()) for b in batches]
    for batch, labels in zip(batches, counted, strict=True):
        logits, penalty = penalty_by_hand(plain, batch)
        predicted, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        task = nn.functional.cross_entropy(predicted, targets, ignore_index=-100, reduction="sum")
        ((task + labels * penalty) / sum(counted)).backward()
    by_hand = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert_same(found, by_hand)
    without, _ = stepped(
        adapted(decoder(family), config()), texts(6, 11), tmp_path, gradient_accumulation_steps=accumulated
    )
    assert all((found[name] - without[name]).abs().max() > 1e-3 for name in routers(found))


def rows_of(family: str) -> dict[str, Tensor]:
    labels = torch.arange(6) % 3
    if family == "vit":
        return {"pixel_values": torch.randn(6, 3, 8, 8, generator=generator(5)), "labels": labels}
    return {**texts(6, 11), "labels": labels}


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_step_on_classes_keeps_the_ratio_of_task_and_penalty(family: str, tmp_path: Path):
    """Sequence classifiers of transformers 5 ignore `num_items_in_batch`, so k batches count k times; ViT does not."""
    found, batches = stepped(
        adapted(FAMILIES[family].make(), penalised()), rows_of(family), tmp_path, gradient_accumulation_steps=3
    )
    plain = adapted(FAMILIES[family].make(), config())
    for batch in batches:
        logits, penalty = penalty_by_hand(plain, batch)
        share = 1 / 3 if family == "vit" else 1.0
        (share * (nn.functional.cross_entropy(logits, batch["labels"]) + penalty)).backward()
    assert_same(found, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})


def test_the_loss_is_unchanged_in_evaluation_and_without_strengths(tmp_path: Path):
    batch = texts(3, 7)
    plain, with_losses = adapted(decoder("llama"), config()), adapted(decoder("llama"), penalised())
    task = plain(**batch).loss
    assert with_losses(**batch).loss > task + 0.1
    assert torch.equal(plain.eval()(**batch).loss, with_losses.eval()(**batch).loss)
    with torch.no_grad():
        assert torch.equal(plain(**batch).loss, with_losses.train()(**batch).loss)
    with with_losses.disable_adapter():
        assert torch.equal(with_losses(**batch).loss, decoder("llama")(**batch).loss)
    trainer = transformers.Trainer(
        with_losses, arguments(tmp_path), eval_dataset=Rows(batch), data_collator=transformers.default_data_collator
    )
    evaluated = transformers.Trainer(
        plain, arguments(tmp_path), eval_dataset=Rows(batch), data_collator=transformers.default_data_collator
    )
    assert trainer.evaluate()["eval_loss"] == evaluated.evaluate()["eval_loss"]


def test_the_loss_of_a_tuple_and_of_positional_arguments():
    batch = texts(3, 7)
    model = adapted(decoder("llama"), penalised())
    expected = model(**batch).loss
    loss, logits = model(**batch, return_dict=False)[:2]
    assert torch.equal(loss, expected)
    assert logits.shape == (3, 11, 31)
    inner = get_peft_model(decoder("llama"), penalised(seed=3)).train()
    named, placed = inner(**batch), inner(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])
    assert torch.equal(named.loss, placed.loss)


def test_a_model_that_gives_no_loss_is_refused_with_what_to_do():
    model = adapted(decoder("llama"), penalised())
    batch = {name: value for name, value in texts(3, 7).items() if name != "labels"}
    with pytest.raises(InputError, match="label_smoothing_factor"):
        model(**batch)
    with pytest.raises(InputError, match="label_smoothing_factor"):
        model(**batch, return_dict=False)
    with torch.no_grad():
        model(**batch)
    assert not list(hooks(model))


def hooks(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def test_nothing_of_a_step_is_left():
    model, batch = adapted(decoder("llama"), penalised()), texts(3, 7)
    seen: list[Any] = []
    handle = blocks(model)[1].router.register_forward_hook(lambda _m, _i, routing: seen.append(routing.probs_TM))
    loss = model(**batch).loss
    handle.remove()
    probs = weakref.ref(seen.pop())
    assert probs() is not None or loss.grad_fn is not None
    graph = weakref.ref(loss)
    loss.backward()
    del loss
    assert probs() is None, "a routing outlives its step"
    assert graph() is None
    assert not list(hooks(model))


@pytest.mark.parametrize(("family", "reentrant"), crossed([False, True]))
def test_recomputing_gives_equal_gradients(family: str, reentrant: bool, tmp_path: Path):
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        model = adapted(decoder(family), config() if reentrant else penalised())
        changes: dict[str, Any] = {}
        if checkpointed:
            changes = {
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
            }
        return stepped(model, texts(4, 11), tmp_path, **changes)[0]

    assert_same(gradients(True), gradients(False))


def test_reentrant_recomputing_with_strengths_is_refused():
    model = adapted(decoder("llama"), penalised())
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="'use_reentrant': False"):
        model(**texts(3, 7))


def test_two_adapters_add_what_each_asks_for():
    batch = texts(3, 7)
    model = adapted(decoder("llama"), penalised())
    one = model(**batch).loss
    model.add_adapter("second", config(num_experts=3, balance_strength=0.11, seed=9))
    assert torch.equal(model(**batch).loss, one)
    model.base_model.set_adapter(["default", "second"])
    both = model(**batch).loss  # the second's experts are zero: the task's loss is what it was
    model.base_model.set_adapter("second")
    model.base_model.set_adapter("default")
    task = adapted(decoder("llama"), config())(**batch).loss
    second = both - one
    assert 0.11 * 0.9 < second < 0.11 * 3
    assert one > task


def test_only_experts_that_are_resident_count():
    batch = texts(3, 7)
    model = adapted(decoder("llama"), config(balance_strength=1.0, blocks=[1]))
    (moe,) = blocks(model).values()
    moe.view(1, torch.tensor([False, True, False, False, False]))
    found = model(**batch).loss
    task = model.eval()(**batch).loss
    # One expert is always in balance, and the loss is then 1.
    torch.testing.assert_close(found - task, torch.tensor(1.0))


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["balance_strength", "z_strength"])
def test_strengths_are_numbers_from_zero(name: str, wrong: float):
    with pytest.raises(InputError, match=name):
        config(**{name: wrong})


def test_the_strengths_are_saved_with_the_adapter(tmp_path: Path):
    model, batch = adapted(decoder("llama"), penalised()), texts(3, 7)
    model.save_pretrained(str(tmp_path))
    loaded = load_adapter(decoder("llama"), tmp_path, trainable=True).train()
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_a_trainer_goes_on_from_its_checkpoint(tmp_path: Path):
    def train(folder: Path, steps: int, resume: bool = False, **changes: Any) -> Any:
        model = adapted(decoder("llama"), penalised())
        chosen = arguments(folder, max_steps=4, save_strategy="steps", save_steps=2, seed=5, **changes)
        trainer = transformers.Trainer(
            model, chosen, data_collator=transformers.default_data_collator, train_dataset=Rows(texts(8, 11))
        )
        if steps < 4:
            trainer.add_callback(StopAt(steps))
        trainer.train(resume_from_checkpoint=resume or None)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    again = train(tmp_path / "parts", 4, resume=True)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


class StopAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_accelerate_with_one_process_gives_the_gradients_of_a_plain_loop():
    from accelerate import Accelerator

    def gradients(accelerator: Accelerator | None) -> dict[str, Tensor]:
        model = adapted(decoder("qwen2"), penalised())
        if accelerator is None:
            model(**texts(3, 7)).loss.backward()
        else:
            ready = accelerator.prepare(model)
            accelerator.backward(ready(**texts(3, 7)).loss)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found, expected = gradients(Accelerator(cpu=True)), gradients(None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("labels", "kind"), [([0, 2, 1, 1], "classes"), ([[1.0, 0.0, 1.0]] * 4, "several labels")])
def test_a_classifier_on_mean_features_gives_its_loss_for_labels(backbone_folder: Path, labels: Any, kind: str):
    task = "sequence-classification" if kind == "classes" else "multi-label-classification"
    model = adapted(load_backbone(str(backbone_folder), task=task, num_labels=3), penalised())
    batch = {"input_ids": torch.tensor([[4, 5, 6, 7]] * 4), "attention_mask": torch.ones(4, 4, dtype=torch.int64)}
    problem = model.config.problem_type
    logits_BC, y = model.eval()(**batch).logits, torch.tensor(labels)
    found = model(**batch, labels=y)
    assert torch.equal(found.logits, logits_BC)
    plain = nn.functional.cross_entropy if kind == "classes" else nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(found.loss, plain(logits_BC, y))
    assert model.train()(**batch, labels=y).loss > found.loss  # and the routers' losses
    assert model.config.problem_type == problem


def test_a_classifier_on_mean_features_trains_as_with_one_batch_if_gradients_are_added_up(
    backbone_folder: Path, tmp_path: Path
):
    """Four rows at once, and as two batches whose gradients Trainer adds up, end at the same head."""
    rows = Rows({"input_ids": torch.tensor([[4, 5, 6, 7], [5, 5, 9, 4]] * 2), "labels": torch.tensor([0, 2, 1, 2])})
    heads = []
    for size, steps in ((4, 1), (2, 2)):
        model = adapted(load_backbone(str(backbone_folder), num_labels=3), config())
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train()
        heads.append(model.base_model.model.classifier.modules_to_save["default"].weight.detach())
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(
        heads[0], load_backbone(str(backbone_folder), num_labels=3).get_parameter("classifier.weight")
    )
