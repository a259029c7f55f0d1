"""Exports a plain LoRA that imitates the mixture of experts, for servers that support LoRA only.

A low-rank change of the last projection of each feed-forward network adds B A h where the experts added D(x). It is
first fitted in closed form (`fit.py`). Where the fit misses something, it is trained for a few steps to bring the
outputs of the blocks and of the model closer (`distil.py`), and what is closer on held-out texts is kept. `export.json`
records how good the imitation is. The shared low-rank updates of other projections and the head are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.adapter.shared_update import SHARED_SCALE, LowRank
from fftmoe.backbones import attach_adapter, copy_head
from fftmoe.backbones.lora import Factors, load_factors, lora_config
from fftmoe.data import Examples
from fftmoe.errors import InputError
from fftmoe.exports.card import CardFacts, Figures, model_card
from fftmoe.exports.check import REORDERED, Batch, answers, check_has_experts, difference, probes, require
from fftmoe.exports.distil import distil, mean_distillation_loss
from fftmoe.exports.examples import finite_metrics
from fftmoe.exports.fit import TokenSums, collect, last_projections, low_rank, owner, relative_error
from fftmoe.exports.folder import file_digest, write_text
from fftmoe.exports.load import fresh_backbone
from fftmoe.exports.plain import open_plain, save_plain
from fftmoe.tasks import make_task
from fftmoe.trained.metrics import referenced
from fftmoe.trained.run import FinishedRun, TrainedModel

BATCH_SIZE = 16
TRAINING_STEPS = 100  # of training after a fit that misses something
ENOUGH = 0.01  # of what the experts add, squared, may be missing in each block where no step is taken by default


@dataclass(frozen=True)
class LoraSettings:
    """Says how the imitation is made.

    Attributes:
        rank: of all factors; raised to the rank of the shared updates where that is larger.
        steps: of training after the closed-form fit; None for `TRAINING_STEPS`, or for none where the fit misses less
            than `ENOUGH` in each block.

    Raises:
        InputError: `rank` is below 1, or `steps` is negative.
    """

    rank: int = 16
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.steps or 0) < 0:
            raise InputError(
                f"--rank {self.rank} and --steps {self.steps}: the rank must be at least 1, and the steps at least 0"
            )

    def steps_after(self, closed_form: Mapping[str, float]) -> int:
        """Return the steps that are taken after a fit with these errors by block."""
        if self.steps is not None:
            return self.steps
        return TRAINING_STEPS if any(error >= ENOUGH for error in closed_form.values()) else 0


@dataclass(frozen=True)
class LoraExamples:
    """Holds the data of an imitation.

    Attributes:
        fitted: batches without labels that the LoRA is fitted to and trained on.
        held_out: batches without labels on which its error is measured.
        test: labelled examples for the metrics. num_strata: how many strata their labels number.
    """

    fitted: Sequence[Batch]
    held_out: Sequence[Batch]
    test: Examples
    num_strata: int


@dataclass(frozen=True)
class Imitation:
    """Holds the LoRA model, and the backbone's module that imitates the experts of each block, by block."""

    model: Any
    names: Mapping[int, str]


def export_lora(
    trained: TrainedModel, facts: CardFacts, folder: Path, settings: LoraSettings, examples: LoraExamples
) -> dict[str, Any]:
    """Write a PEFT LoRA folder.

    Returns:
        What `export.json` records about this format: the error by block and the run's metrics before and after.

    Raises:
        InputError: the run has no experts. RunError: the folder gives other logits than the model that was saved in it.
    """
    check_has_experts(trained, "to imitate")
    run, teacher = trained.run, trained.model
    sums, held_sums = collect(teacher, examples.fitted), collect(teacher, examples.held_out)
    shared = _shared(teacher)
    rank = max([settings.rank, *(a.shape[0] for a, _ in shared.values())])
    imitation = _attach_lora(trained, sums, shared, rank)
    test = referenced(trained, examples.test)
    metrics = partial(finite_metrics, task=run.judging_task, examples=test, num_strata=examples.num_strata)
    metric = {"mixture_of_experts": metrics(teacher), "backbone_alone": metrics(imitation.model)}
    _load_fit(imitation, sums, shared, rank)
    metric["lora_closed_form"], closed_form = metrics(imitation.model), _errors(imitation, held_sums)
    steps = settings.steps_after(closed_form)
    trained_is_kept = _train_further(imitation, teacher, examples, steps, _exclusive(run))
    metric["lora"], errors = metrics(imitation.model), _errors(imitation, held_sums)
    compared = _save_compared(trained, imitation, folder)
    write_text(folder / "README.md", _card(run, facts, metric, errors))
    return {
        **compared,
        "weights": file_digest(folder / ADAPTER_WEIGHTS),
        "rank": rank,
        "steps": steps,
        "kept": "trained" if trained_is_kept else "closed_form",
        "tokens": next(iter(sums.values())).tokens,
        "relative_error_closed_form": closed_form,
        "relative_error": errors,
        "metric": metric,
    }


def _train_further(imitation: Imitation, teacher: Any, examples: LoraExamples, steps: int, exclusive: bool) -> bool:
    """Train the factors, and keep the trained ones if they are closer on held-out texts; whether they are kept."""
    if not steps:
        return False
    factors, student = own_factors(imitation), imitation.model
    fitted = {block: (a.detach().clone(), b.detach().clone()) for block, (a, b) in factors.items()}
    before = mean_distillation_loss(student, teacher, examples.held_out, exclusive)
    distil(student, factors, teacher, examples.fitted, steps, exclusive)
    if mean_distillation_loss(student, teacher, examples.held_out, exclusive) < before:
        return True
    with torch.no_grad():
        for block, pair in factors.items():
            for factor, value in zip(pair, fitted[block], strict=True):
                factor.copy_(value)
    return False


def _exclusive(run: FinishedRun) -> bool:
    """Return whether the teacher's logits are compared as probabilities of classes of which exactly one is right.

    The logits of a closed-form head are probabilities already; their softmax is flat and says little about the label.
    """
    return make_task(run.task).exclusive and run.head != "closed-form"


def _save_compared(trained: TrainedModel, imitation: Imitation, folder: Path) -> dict[str, float]:
    """Write the LoRA, and compare the folder with the model in memory."""
    batches = probes(trained)
    expected = answers(imitation.model, batches)
    save_plain(trained.run, imitation.model, folder)
    return require(difference(answers(open_plain(trained.run, folder), batches), expected), REORDERED, "LoRA")


def _card(
    run: FinishedRun, facts: CardFacts, metric: Mapping[str, Mapping[str, float]], errors: Mapping[str, float]
) -> str:
    own, experts = metric["lora"], metric["mixture_of_experts"]
    missing = ", ".join(f"{error:.1%} in block {block}" for block, error in errors.items())
    what = (
        "A plain LoRA that imitates a mixture-of-experts adapter. Of what the experts add, it misses "
        f"{missing} (squared error on held-out tokens)."
    )
    values = {f"{name} on the test split": value for name, value in own.items()}
    values |= {f"{name} of the imitated adapter": value for name, value in experts.items()}
    note = f"Measured when this LoRA was made, on {facts.data}."
    return model_card(run, facts, what, Figures(note, next(iter(own)), values), plain=True)


def _shared(model: Any) -> Factors:
    """Return the shared updates as factors of LoRA by the name of their module, without those that the fit includes."""
    fitted = last_projections(model).values()
    return {
        path: (module.low_a.detach(), SHARED_SCALE * module.low_b.detach())
        for name, module in model.named_modules()
        if isinstance(module, LowRank) and (path := owner(name)) not in fitted
    }


def _attach_lora(trained: TrainedModel, sums: Mapping[int, TokenSums], shared: Factors, rank: int) -> Imitation:
    """Return the run's backbone and head with a LoRA that adds nothing yet."""
    names = {block: name for block, name in last_projections(trained.model).items() if block in sums}
    student = attach_adapter(fresh_backbone(trained.run), lora_config(rank, 1.0, [*names.values(), *shared]))
    copy_head(trained.model, student)
    return Imitation(student, names)


def _load_fit(imitation: Imitation, sums: Mapping[int, TokenSums], shared: Factors, rank: int) -> None:
    """Load the fit of every block and the shared updates.

    All factors are filled up with zeros to the same rank, which some servers require.
    """
    fitted = {name: low_rank(sums[block], rank) for block, name in imitation.names.items()}
    factors = {**fitted, **shared}
    padded = {
        name: (F.pad(a, (0, 0, 0, rank - a.shape[0])), F.pad(b, (0, rank - b.shape[1])))
        for name, (a, b) in factors.items()
    }
    load_factors(imitation.model, padded)


def _errors(imitation: Imitation, sums: Mapping[int, TokenSums]) -> dict[str, float]:
    """Return the relative error of each block on the tokens of these sums."""
    factors = own_factors(imitation)
    return {str(block): relative_error(own, *factors[block]) for block, own in sums.items()}


def own_factors(imitation: Imitation) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the parameters A and B that imitate the experts of each block."""
    model, names = imitation.model, imitation.names
    layers = {block: model.get_submodule(f"base_model.model.{name}") for block, name in names.items()}
    return {block: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for block, layer in layers.items()}
