"""A saved adapter in the hands of people who use transformers and PEFT: classes, pipelines, trainers and messages."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.adapter.pooling import MeanPoolClassifier
from fftmoe.backbones import attach_adapter, load_adapter, load_backbone, load_reader, logits
from fftmoe.rng import generator
from fftmoe.store import SavedWith, save_adapter
from language import save_language_model
from models import FAMILIES, tiny_tokenizer
from shared_fixtures import COLOURS, WORDS

LABELS = ("red", "green", "blue", "none")
IDS = torch.tensor([[4, 5, 6, 7, 8], [9, 4, 4, 0, 0]])
TEXTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
IMAGES = {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator(1))}


@dataclass(frozen=True)
class Case:
    """A task with a model for it.

    Attributes:
        options: of `load_backbone`. auto: PEFT's automatic class for it. targets: labels of a batch of two.
    """

    task: str
    auto: Any
    batch: dict[str, Tensor]
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]
    family: str = "bert"


def next_token(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten())


def each_token(logits_BSC: Tensor, labels_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSC.flatten(0, 1), labels_BS.flatten())


CLASSES = torch.tensor([3, 1])
SEQUENCE, SEVERAL = peft.AutoPeftModelForSequenceClassification, torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
NUMBERS = torch.tensor([[1.5, -2, 0, 3], [0.5, 7, 1, 2]])
MANY = F.binary_cross_entropy_with_logits
TAGS = (torch.arange(10) % 4).view(2, 5)
TOKENS = peft.AutoPeftModelForTokenClassification
CASES = {
    "classes, mean": Case("sequence-classification", SEQUENCE, TEXTS, CLASSES, F.cross_entropy, {}),
    "classes, random features": Case(
        "sequence-classification", SEQUENCE, TEXTS, CLASSES, F.cross_entropy, {"fourier_features": 13, "seed": 5}
    ),
    "classes, native": Case(
        "sequence-classification", SEQUENCE, TEXTS, CLASSES, F.cross_entropy, {"pooling": "native"}
    ),
    "classes, two layers": Case(
        "sequence-classification", SEQUENCE, TEXTS, CLASSES, F.cross_entropy, {"pooling": "native"}, "roberta"
    ),
    "classes, decoder": Case(
        "sequence-classification", SEQUENCE, TEXTS, CLASSES, F.cross_entropy, {"pooling": "native"}, "llama"
    ),
    "several labels": Case("multi-label-classification", SEQUENCE, TEXTS, SEVERAL, MANY, {}),
    "numbers": Case("regression", SEQUENCE, TEXTS, NUMBERS, F.mse_loss, {}),
    "tokens": Case("token-classification", TOKENS, TEXTS, TAGS, each_token, {}),
    "next token": Case("causal-lm", peft.AutoPeftModelForCausalLM, TEXTS, IDS, next_token, {}, "words"),
    "images": Case("image-classification", peft.AutoPeftModel, IMAGES, CLASSES, F.cross_entropy, {}, "vit"),
}
NAMED = {"text-classification": "classes, mean", "token-classification": "tokens", "image-classification": "images"}
PROCESSOR = {"do_resize": True, "size": {"height": 8, "width": 8}, "image_processor_type": "ViTImageProcessor"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family, with what reads its inputs."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = folder = tmp_path_factory.mktemp("models") / family
            if family == "words":
                return save_language_model(folder)
            model: Any = FAMILIES[family].make()
            model.save_pretrained(folder)
            if family == "vit":
                processor = PROCESSOR | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
                (folder / "preprocessor_config.json").write_text(json.dumps(processor))
            else:
                tiny_tokenizer((*WORDS, *COLOURS)).save_pretrained(folder)
        return made[family]

    return get


def names_of(case: Case) -> tuple[str, ...]:
    return () if case.task == "causal-lm" else LABELS


def trained(case: Case, folder: Path) -> Any:
    """The model of a case with an adapter and a head that are not new."""
    names = names_of(case)
    backbone = load_backbone(
        str(folder), task=case.task, num_labels=len(names) or None, label_names=names or None, **case.options
    )
    model = attach_adapter(backbone, MoeAdapterConfig(num_experts=5, expert_dim=4, top_k=2, blocks="last-2"))
    for number, moe in blocks(model).items():
        nn.init.normal_(moe.down, generator=generator(1, number))
    for name, p in model.named_parameters():
        if "modules_to_save" in name:
            nn.init.normal_(p, std=0.3, generator=generator(2, name))
    return model.eval()


@pytest.fixture(scope="module")
def saved(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """The trained model of a case, and the folder of its adapter."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(name: str) -> tuple[Any, Path]:
        if name not in made:
            case = CASES[name]
            source = folders(case.family)
            model, folder = trained(case, source), tmp_path_factory.mktemp("saved") / "adapter"
            reader = load_reader(str(source), case.family == "vit")
            save_adapter(model, folder, SavedWith(names_of(case), case.task, reader))
            made[name] = model, folder
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_a_model_gives_logits_and_the_loss_of_its_task(name: str, saved: Callable[[str], tuple[Any, Path]]):
    case, (model, _) = CASES[name], saved(name)
    plain, asked = model(**case.batch), model(**case.batch, labels=case.targets)
    assert plain.loss is None
    assert torch.equal(plain.logits, asked.logits)
    assert torch.equal(logits(model, case.batch), plain.logits)
    torch.testing.assert_close(asked.loss, case.loss(plain.logits, case.targets))
    assert model(**case.batch, labels=case.targets, return_dict=True)["logits"] is not None


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("name", CASES)
def test_an_automatic_class_of_peft_opens_the_folder_with_its_head_and_labels(
    name: str, saved: Callable[[str], tuple[Any, Path]]
):
    case, (model, folder) = CASES[name], saved(name)
    opened = case.auto.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        assert torch.equal(opened(**case.batch).logits, model(**case.batch).logits)
        loss = opened(**case.batch, labels=case.targets).loss
    torch.testing.assert_close(loss, case.loss(model(**case.batch).logits, case.targets))
    if names_of(case):
        assert opened.config.id2label == dict(enumerate(LABELS))
        assert opened.config.label2id == {label: place for place, label in enumerate(LABELS)}
        assert opened.config.num_labels == 4
    assert isinstance(opened.get_base_model(), MeanPoolClassifier) == (
        "mean" in name or name in ("several labels", "numbers", "classes, random features")
    )
    pad, batch = opened.config.to_dict().get("pad_token_id"), dict(case.batch)
    if "attention_mask" in batch and case.task != "causal-lm":  # what fills a row does not matter
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 11, batch["input_ids"])
        assert pad is not None
        found = opened(**batch).logits
        kept = batch["attention_mask"].bool() if case.task == "token-classification" else slice(None)
        assert torch.equal(found[kept], model(**case.batch).logits[kept])


def test_the_weights_of_a_new_head_are_drawn_without_the_random_state_of_the_process(
    saved: Callable[[str], tuple[Any, Path]], folders: Callable[[str], Path]
):
    _, folder = saved("classes, random features")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folders("bert"))
    before = torch.get_rng_state()
    peft.PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_holds_what_reads_inputs_and_says_its_labels(saved: Callable[[str], tuple[Any, Path]]):
    _, folder = saved("classes, mean")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ash bay")["input_ids"] == tiny_tokenizer((*WORDS, *COLOURS))("ash bay")["input_ids"]
    said = json.loads((folder / "labels.json").read_text())
    assert said == {"labels": list(LABELS), "problem_type": "single_label_classification"}
    _, images = saved("images")
    assert transformers.AutoImageProcessor.from_pretrained(images).size["height"] == 8
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_folder_is_opened_from_another_place_than_the_one_its_backbone_was_named_from(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    case, source = CASES["classes, mean"], folders("bert")
    monkeypatch.chdir(source.parent)
    model = trained(case, Path(source.name))
    save_adapter(model, tmp_path / "adapter", SavedWith(names_of(case), case.task, load_reader(source.name, False)))
    monkeypatch.chdir(tmp_path)
    opened = case.auto.from_pretrained("adapter").eval()
    with torch.no_grad():
        assert torch.equal(opened(**case.batch).logits, model(**case.batch).logits)


def test_our_own_loading_gives_the_same_model(saved: Callable[[str], tuple[Any, Path]], folders: Callable[[str], Path]):
    for name in ("classes, random features", "tokens"):
        case, (model, folder) = CASES[name], saved(name)
        backbone = load_backbone(str(folders("bert")), task=case.task, num_labels=4, **case.options)
        opened = load_adapter(backbone, folder)
        assert type(opened) is peft.PeftModel
        assert torch.equal(opened(**case.batch).logits, model(**case.batch).logits)
        assert opened.config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("kind", ["text-classification", "several labels", "numbers"])
def test_a_pipeline_scores_texts(kind: str, saved: Callable[[str], tuple[Any, Path]]):
    model, folder = saved(NAMED.get(kind, kind))
    opened = SEQUENCE.from_pretrained(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scoring: Any = transformers.pipeline("text-classification", model=opened, tokenizer=tokenizer, top_k=None)
    [found] = scoring(["ash bay red"])
    with torch.no_grad():
        outputs = model(**tokenizer(["ash bay red"], return_tensors="pt")).logits[0]
    expected = {"text-classification": outputs.softmax(0), "several labels": outputs.sigmoid(), "numbers": outputs}[
        kind
    ]
    scores = {one["label"]: one["score"] for one in found}
    assert scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6)


def test_a_pipeline_tags_words_and_one_continues_texts(saved: Callable[[str], tuple[Any, Path]], tmp_path: Path):
    model, folder = saved("tokens")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tagging = transformers.pipeline(
        "token-classification", model=TOKENS.from_pretrained(str(folder)), tokenizer=tokenizer
    )
    with torch.no_grad():
        best = model(**tokenizer(["ash bay"], return_tensors="pt")).logits[0].argmax(1)
    found = tagging("ash bay")
    assert [one["entity"] for one in found] == [LABELS[best[one["index"]]] for one in found]
    assert len(found) == 2

    source = save_language_model(tmp_path / "model")
    backbone = load_backbone(str(source), task="causal-lm")
    language = attach_adapter(backbone, MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=1))
    save_adapter(language, tmp_path / "adapter", SavedWith((), "causal-lm", load_reader(str(source), False)))
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    continuing = transformers.pipeline("text-generation", model=opened, tokenizer=words)
    [said] = continuing("ash bay", max_new_tokens=3, do_sample=False)
    asked = words("ash bay", return_tensors="pt")
    longer = language.generate(**asked, max_new_tokens=3, do_sample=False)
    assert said["generated_text"] == words.decode(longer[0], skip_special_tokens=True)


class Supervised(transformers.Trainer):
    """Asks of a model a loss and its logits, as trainers of completions do; trl's own is in test_trl.py."""

    right: ClassVar[list[float]] = []

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *more: Any, **given: Any) -> Any:
        found: Any = super().compute_loss(model, inputs, True, *more, **given)
        loss, outputs = found
        shifted, targets = outputs.logits[..., :-1, :], inputs["labels"][..., 1:]
        kept = targets != -100
        self.right.append(float((shifted.argmax(-1) == targets)[kept].float().mean()))
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_of_completions_gets_losses_and_logits_and_saves_what_peft_opens(
    folders: Callable[[str], Path], tmp_path: Path
):
    config = MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=1, balance_strength=0.01, task_type="CAUSAL_LM")
    base = transformers.AutoModelForCausalLM.from_pretrained(folders("words"))
    model: Any = peft.get_peft_model(base, config)
    assert isinstance(model, peft.PeftModelForCausalLM)
    assert model.get_input_embeddings() is base.get_input_embeddings()
    masked = IDS.clone()
    masked[:, :2] = -100  # the prompt, and what fills a row
    masked[IDS == 0] = -100
    rows: Any = [
        {"input_ids": IDS[i % 2], "attention_mask": TEXTS["attention_mask"][i % 2], "labels": masked[i % 2]}
        for i in range(8)
    ]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "training"),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=0.05,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
        dataloader_pin_memory=False,
    )
    trainer = Supervised(model, arguments, train_dataset=rows, eval_dataset=rows[:4])
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert len(Supervised.right) >= 12
    assert trainer.evaluate()["eval_loss"] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(opened(**TEXTS).logits, model.eval()(**TEXTS).logits)
