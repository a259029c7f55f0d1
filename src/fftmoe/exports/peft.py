"""Exports the run's adapter as a PEFT folder with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from fftmoe.adapter.bound import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fftmoe.exports.card import CardFacts, figures_of_run, model_card
from fftmoe.exports.check import SAME, answers, difference, probes, require
from fftmoe.exports.folder import file_digest, write_json, write_text
from fftmoe.exports.load import reload
from fftmoe.trained.run import TrainedModel


def export_peft(trained: TrainedModel, facts: CardFacts, folder: Path, top_k: int | None = None) -> dict[str, Any]:
    """Copy the run's adapter byte for byte.

    Args:
        top_k: how many experts a token uses, which `trained` does already; None keeps the saved value.

    Returns:
        What `export.json` records about this format.

    Raises:
        RunError: the copied adapter gives other logits.
    """
    run = trained.run
    for path in run.adapter.iterdir():  # the tokenizer too, which an older version did not write
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if top_k is not None:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        write_json(folder / ADAPTER_CONFIG, {**config, "top_k": top_k})
    batches = probes(trained)
    found = difference(answers(reload(run, folder), batches), answers(trained.model, batches))
    what = facts.how_trained(run.method)
    write_text(folder / "README.md", model_card(run, facts, what, figures_of_run(facts, own=top_k is None)))
    return {**require(found, SAME, "adapter"), "weights": file_digest(folder / ADAPTER_WEIGHTS)}
