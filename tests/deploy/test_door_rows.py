"""How many rows an answer depends on, and what the door says where they are too few."""

import math
from pathlib import Path
from typing import Any

import pytest

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy.door import Admitted, Door
from fftmoe.setup.site_request import SiteRows
from policies import allow
from site_recipes import MODES, changed, job_of, recipe
from sites import fails_as

FEWEST = 11
RARE = "without those of labels with fewer rows"
ONE_STEP = {"federation": {"local_steps": 1}}  # of eight rows
SOLVED = {"head": {"kind": "closed-form"}}


def admitted(folder: Path, changes: dict[str, Any], **policy: Any) -> tuple[Door, Admitted]:
    written = recipe(changes)
    allow(folder, written, fewest_rows=FEWEST, **policy)
    door = Door(folder, own_model=False)
    return door, door.admit(job_of(written))


@pytest.mark.parametrize(
    ("changes", "task", "rows"),
    [
        (changed(SOLVED, ONE_STEP), "sums", SiteRows(50, 0, (50,))),  # all rows are summed, however few are drawn
        (changed(MODES["examples"], ONE_STEP), "train", SiteRows(50)),  # noise of its own hides them
        ({"federation": {"local_steps": None, "local_epochs": 2}}, "train", SiteRows(50)),
        ({"data": {"validation": 0.1}}, "validate", SiteRows(50)),  # over none, so it answers zeros
    ],
)
def test_an_answer_over_enough_rows_is_given(tmp_path: Path, changes: dict[str, Any], task: str, rows: SiteRows):
    door, let_in = admitted(tmp_path, changes)
    door.count(let_in, CheckedRequest(task, 1), rows, 10)


@pytest.mark.parametrize(
    ("changes", "task", "rows", "words"),
    [
        (ONE_STEP, "train", SiteRows(50), "depend on 8 of the site's 50 rows, and"),
        ({}, "train", SiteRows(10, 40), "depend on 10 of the site's 50 rows, and"),
        (SOLVED, "sums", SiteRows(50, 0, (2, 2)), rf"depend on 0 of the site's 50 rows \({RARE}"),
        (SOLVED, "sums", SiteRows(50, 0, (5, 2)), rf"depend on 5 of the site's 50 rows \({RARE}"),
    ],
)
def test_an_answer_over_too_few_rows_is_refused(
    tmp_path: Path, changes: dict[str, Any], task: str, rows: SiteRows, words: str
):
    door, let_in = admitted(tmp_path, changes, fewest_rows_of_label=3)
    with fails_as("policy", words):
        door.count(let_in, CheckedRequest(task, 1), rows, 10)


def test_without_a_number_no_label_has_enough_rows(tmp_path: Path):
    _, let_in = admitted(tmp_path, {}, fewest_rows_of_label=None)
    assert let_in.fewest_of_label == math.inf
