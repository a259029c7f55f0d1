"""trl trains the adapter, and its losses of pairs are ours."""

import types
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
import transformers
from torch import Tensor

from fftmoe import MoeAdapterConfig
from fftmoe.backbones.pairs import answer_scores
from fftmoe.data import IGNORED
from fftmoe.tasks import PairLoss
from language import save_language_model

# Its trainers still use a name that transformers has given up.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

COMPLETIONS = [{"prompt": "ash bay", "completion": " cod dog"}, {"prompt": "elm", "completion": " ash"}] * 4
PAIRS = [
    {"prompt": "ash bay", "chosen": " cod dog", "rejected": " elm"},
    {"prompt": "elm", "chosen": " ash", "rejected": " bay ash cod"},
    {"prompt": "cod dog elm", "chosen": " bay ash", "rejected": " dog dog"},
]


def config() -> MoeAdapterConfig:
    """Three experts in every block; PEFT notes the name of the model in it."""
    return MoeAdapterConfig(num_experts=3, expert_dim=4, top_k=2, task_type="CAUSAL_LM")


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(save_language_model(tmp_path / "model"))


def arguments(kind: Any, folder: Path, **more: Any) -> Any:
    """Of a trainer of trl that trains four steps on the CPU and reports nothing."""
    quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 1}
    learning = {"max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 0.05, "max_length": 31}
    return kind(str(folder), use_cpu=True, bf16=False, **quiet, **learning, **more)


def base(source: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(source)


@pytest.mark.parametrize("made_by", ["trl", "peft"])
def test_its_supervised_trainer_trains_and_saves_what_peft_opens(source: str, tmp_path: Path, made_by: str):
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    given: Any = {"model": base(source), "peft_config": config()}
    if made_by == "peft":
        given = {"model": peft.get_peft_model(base(source), config())}
    words = transformers.AutoTokenizer.from_pretrained(source)
    rows = datasets.Dataset.from_list(COMPLETIONS)
    trainer: Any = SFTTrainer(
        **given, args=arguments(SFTConfig, tmp_path / "sft"), train_dataset=rows, processing_class=words
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "saved"))
    asked = words("ash bay cod", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(opened(**asked).logits, trainer.model.eval()(**asked).logits)


def move(model: Any) -> None:
    """Let the experts change what the model says."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)


def scored(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The scores [B, 2, 3] of the pairs of a batch of trl, as `fftmoe` computes them."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    ours = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    nothing = torch.zeros(len(labels) // 2, 2)
    with torch.no_grad(), model.disable_adapter():
        reference_B2 = answer_scores(model, {**ours, "reference": nothing})[..., 0]
    return answer_scores(model, {**ours, "reference": reference_B2})


@pytest.mark.parametrize(("kind", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_its_losses_with_a_reference_are_ours(source: str, tmp_path: Path, kind: str, theirs: str):
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = DPOTrainer(
        base(source),
        peft_config=config(),  # of a model that has an adapter already, the reference would be a copy of it
        args=arguments(DPOConfig, tmp_path / "dpo", beta=0.3, loss_type=[theirs]),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=transformers.AutoTokenizer.from_pretrained(source),
    )
    [batch] = trainer.get_train_dataloader()
    model: Any = trainer.model
    move(model.eval())
    expected = trainer.compute_loss(model, dict(batch))
    loss = PairLoss(kind, 0.3).loss(scored(model, batch), torch.empty(0))
    torch.testing.assert_close(loss, expected)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    trained = [model.get_parameter(name) for name in names]
    for name, found, gradient in zip(
        names, torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
    ):
        torch.testing.assert_close(found, gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["cpo", "simpo", "orpo"])
def test_its_losses_without_a_reference_are_ours(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Of both the part that compares the answers; `orpo` and `cpo` add the likelihood of the chosen one."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    beta, margin = 0.3, 0.7 if kind == "simpo" else 0.0
    here = types.SimpleNamespace(device="cpu")
    trainer: Any = types.SimpleNamespace(
        alpha=0.0, beta=beta, label_smoothing=0.0, simpo_gamma=margin, accelerator=here,
        loss_type="simpo" if kind == "simpo" else "sigmoid",
    )  # fmt: skip
    tokens = torch.tensor([[3.0, 5.0], [2.0, 1.0], [7.0, 2.0]])
    policy = -tokens * torch.tensor([[0.3, 0.8], [1.1, 0.2], [0.5, 0.9]])
    given: Any = policy if kind == "cpo" else policy / tokens
    if kind == "orpo":
        expected = -ORPOTrainer.odds_ratio_loss(trainer, *given.unbind(1))[0]
    else:
        expected = CPOTrainer.cpo_loss(trainer, *given.unbind(1))[0]
    scores = torch.stack([policy, torch.zeros_like(policy), tokens], 2)
    torch.testing.assert_close(PairLoss(kind, beta, margin).pairs(scores), expected)
