"""Saves a LoRA of a classifier that PEFT opens without this package.

A head that a model of transformers has comes with the LoRA, as PEFT saves it. A head on pooled features has no such
model: there the folder holds a LoRA of the bare encoder, and the head's numbers beside it, with which a few lines of
torch compute the logits (the model card shows them).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.adapter.pooling import MeanPoolClassifier
from fftmoe.backbones.encoder_lora import is_pooled, open_encoder_lora, save_encoder_lora
from fftmoe.backbones.lora import lora_modules
from fftmoe.errors import InputError
from fftmoe.exports.card import CardFacts, figures_of_run, model_card
from fftmoe.exports.check import REORDERED, answers, difference, probes, require
from fftmoe.exports.folder import beside, file_digest, write_text
from fftmoe.exports.load import fresh_backbone, reload
from fftmoe.store import save_adapter, write_beside
from fftmoe.trained.run import FinishedRun, TrainedModel


def save_plain(run: FinishedRun, model: Any, folder: Path) -> None:
    """Write an adapted model's LoRA and its head in a form that PEFT opens without this package."""
    if not is_pooled(model):
        save_adapter(model, folder, beside(run), private=False)
        return
    save_encoder_lora(model, folder)
    write_beside(folder, beside(run))


def open_plain(run: FinishedRun, folder: Path) -> Any:
    """Return the model of a folder that `save_plain` has written."""
    backbone = fresh_backbone(run)
    if isinstance(backbone, MeanPoolClassifier):
        return open_encoder_lora(backbone, folder)
    return reload(run, folder)


def export_plain(trained: TrainedModel, facts: CardFacts, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Write the LoRA of a run whose method trains LoRA, unchanged.

    Args:
        given: options of an imitation; none is allowed, because nothing is imitated.

    Returns:
        What `export.json` records about this format.

    Raises:
        InputError: an option is given. RunError: the folder gives other logits than the run's model.
    """
    if given:
        raise InputError(
            f"method {trained.run.method} trains a LoRA, which is exported as it is; leave --{min(given)} out"
        )
    batches = probes(trained)
    expected = answers(trained.model, batches)
    save_plain(trained.run, trained.model, folder)
    compared = require(difference(answers(open_plain(trained.run, folder), batches), expected), REORDERED, "LoRA")
    what = facts.how_trained(trained.run.method)
    card = model_card(trained.run, facts, what, figures_of_run(facts, own=True), plain=True)
    write_text(folder / "README.md", card)
    return {**compared, "weights": file_digest(folder / ADAPTER_WEIGHTS), "modules": len(lora_modules(trained.model))}
