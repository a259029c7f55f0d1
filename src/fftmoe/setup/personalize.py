"""Makes the answers of a finished run fit a place that was in no round, from a few rows of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.data import encoding_option
from fftmoe.errors import InputError
from fftmoe.exports.folder import beside, new_folder
from fftmoe.rounds.own_answers import OwnLabels, OwnRows
from fftmoe.setup.finished import finished_run, recipe_of
from fftmoe.setup.load import read_split
from fftmoe.setup.own_labels import MOST_CHOOSING, own_answer, spread, totals_of
from fftmoe.store import ADAPTER, KEPT_ROUND, Bindings, save_adapter, write_atomically
from fftmoe.store.files import PRIVATE_FOLDER
from fftmoe.store.run_folder import CONFIG, PLACE
from fftmoe.strict import json_text
from fftmoe.tasks import label_form
from fftmoe.trained.load import load_trained
from fftmoe.trained.prior import OwnAnswer, giving, make_prior, why_no_prior
from fftmoe.trained.run import TrainedModel

SHARE_DIGITS = 6  # of a share that is written


@dataclass(frozen=True)
class PlaceModel:
    """Holds a place's rows beside the model of a run.

    Attributes:
        trained: the model; its outputs are logits. rows: how many there are.
        can_have_part: whether the head is a solved one, which can have a private part.
        answer: finds how the place uses the answers, with a private part for the head or without.
    """

    trained: TrainedModel
    rows: int
    can_have_part: bool
    answer: Callable[[bool], OwnAnswer]

    def shares(self) -> tuple[dict[str, float], bool]:
        """Return the label shares for which the place corrects answers, as far as that fits its rows, by label; and
        whether they are its own. Where correcting for these would not help, they are everyone's.
        """
        found = self.answer(False)
        names = self.trained.run.label_names
        return dict(zip(names, map(round_share, found.shares.tolist()), strict=True)), found.strength > 0


def open_place(
    folder: Path,
    source: str,
    split: str = "train",
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
    encoding: str | None = None,
) -> PlaceModel:
    """Return a place's rows beside the model of a finished run.

    Args:
        source: rows of the place with their labels. split: of the source.
        accept_changes, round: see `finished_run`. encoding: of text files; None for UTF-8.

    Raises:
        InputError: the run cannot be used or its answers cannot be corrected; the rows cannot be read, or have labels
            that the run does not know.
    """
    stated = encoding_option(encoding)
    run = finished_run(folder, accept_changes, round)
    if (reason := why_no_prior(run)) is not None:
        raise InputError(
            f"the answers of the run in {folder} cannot be made to fit a place: {reason}; use them as they are"
        )
    trained, form = load_trained(run), label_form(run.task, run.head)
    assert form is not None, "the answers can be corrected"
    found = read_split(recipe_of(folder), split, run.label_names, source, stated)
    examples, rows = found.examples[split], np.arange(len(found.examples[split]))
    totals = totals_of(examples, rows, len(run.label_names), form)
    chosen = OwnRows(spread(rows, MOST_CHOOSING), rows[:0])
    own = OwnLabels(form, lambda _: totals, examples, lambda _: chosen, run.temperature is not None)
    shares, task = run.label_shares or (), run.judging_task

    def answer(with_part: bool) -> OwnAnswer:
        fitting = own if with_part else replace(own, solved=False)
        return own_answer(fitting, 0, trained.model, task, shares, run.temperature)

    return PlaceModel(trained, len(rows), own.solved, answer)


def write_place(folder: Path, place: PlaceModel, output: Path) -> dict[str, Any]:
    """Write the model of a place as the folder of a run, which `fftmoe predict` uses like any other.

    Args:
        folder: of the run. output: a new or empty folder.

    Returns:
        what `place.json` says: how many `rows` of the place there were, whether answers are `corrected` for its label
        shares, and whether its head has a `private_part`.

    Raises:
        InputError: the output cannot be used.
    """
    run = place.trained.run
    answer = place.answer(True)
    trained = giving(place.trained, make_prior(run, "place", answer.shares), answer.part)
    with new_folder(output) as made:
        made.chmod(PRIVATE_FOLDER)
        write_atomically(made / CONFIG, (folder / CONFIG).read_bytes())
        save_adapter(trained.model, made / ADAPTER, beside(trained.run))
        bindings = run.began or Bindings({})
        bindings.with_adapters(made, [ADAPTER]).write(made)
        said = {"rows": place.rows, "corrected": answer.strength > 0, "private_part": answer.part is not None}
        write_atomically(made / PLACE, (json_text(said, indent=2) + "\n").encode())
    return said


def round_share(share: float) -> float:
    """Return a share as it is written."""
    return float(f"{share:.{SHARE_DIGITS}f}")
