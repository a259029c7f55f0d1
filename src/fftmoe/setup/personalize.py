"""Finds the label shares of a place that was in no round, from a few rows of its own."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fftmoe.data import encoding_option
from fftmoe.errors import InputError
from fftmoe.rounds.own_answers import ChoosingRows, OwnLabels
from fftmoe.setup.finished import finished_run, recipe_of
from fftmoe.setup.load import read_split
from fftmoe.setup.own_labels import MOST_CHOOSING, chosen_shares, totals_of
from fftmoe.store import KEPT_ROUND
from fftmoe.tasks import label_form
from fftmoe.trained.load import load_trained
from fftmoe.trained.prior import why_no_prior

SHARE_DIGITS = 6  # of a share that is written


class SharesOfPlace(NamedTuple):
    """Holds the share of each label by its name, and how many rows they are from."""

    shares: dict[str, float]
    rows: int


def shares_of_place(
    folder: Path,
    source: str,
    split: str = "train",
    accept_changes: bool = False,
    round: str = KEPT_ROUND,
    encoding: str | None = None,
) -> SharesOfPlace:
    """Return the label shares for which a place corrects the answers of a finished run, as far as that fits its rows.

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
    choosing = ChoosingRows(rows[:MOST_CHOOSING], counted=True)
    own = OwnLabels(form, lambda _: totals, examples, lambda _: choosing, solved=False)
    shares = chosen_shares(own, 0, trained.model, run.judging_task, run.label_shares or ())
    rounded = [round_share(share) for share in shares.tolist()]
    return SharesOfPlace(dict(zip(run.label_names, rounded, strict=True)), len(rows))


def round_share(share: float) -> float:
    """Return a share as it is written."""
    return float(f"{share:.{SHARE_DIGITS}f}")
