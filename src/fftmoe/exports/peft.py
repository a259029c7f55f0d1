"""The adapter as a PEFT folder with a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from fftmoe.exports.card import model_card, of_run
from fftmoe.exports.check import SAME, answers, difference, probes, require
from fftmoe.exports.folder import digest_of, write_json, write_text
from fftmoe.exports.load import CONFIG, WEIGHTS, open_run, reload


def export_peft(run: Path, folder: Path, *, top_k: int | None = None) -> dict[str, Any]:
    """The run's adapter, byte for byte; with `top_k` its configuration says so.

    Returns:
        what `export.json` says of it.
    """
    source = open_run(run, top_k)
    for name in (CONFIG, WEIGHTS, "labels.json"):
        shutil.copyfile(run / "adapter" / name, folder / name)
    if top_k is not None:
        config = json.loads((folder / CONFIG).read_text())
        write_json(folder / CONFIG, {**config, "top_k": top_k})
    trained = source.trained
    batches = probes(trained)
    found = difference(answers(reload(trained, folder), batches), answers(trained.model, batches))
    recipe, num_labels = trained.recipe, len(trained.label_names)
    what = f"A {recipe.method} adapter, trained in a federation in which the raw data stayed where it was."
    measured = of_run(recipe, source.summary, own=top_k is None)
    card = model_card(recipe, source.summary, num_labels, what, measured)
    write_text(folder / "README.md", card)
    return {**require(found, SAME, "adapter"), "weights": digest_of(folder / WEIGHTS)}
