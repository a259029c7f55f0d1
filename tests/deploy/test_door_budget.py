"""A delta that is too large for a site's rows is refused where the site itself adds the noise, and only there."""

from pathlib import Path

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy.door import Door
from fftmoe.setup.site_request import SiteRows
from policies import allow
from site_recipes import MODES, job_of, recipe
from sites import fails_as

ROWS = 29
TRAIN = CheckedRequest("train", 1)


def site(folder: Path, mode: str, delta: float) -> Door:
    allow(folder, recipe(MODES[mode]), privacy={"modes": [mode], "epsilon": 8.0, "delta": delta})
    return Door(folder, own_model=False)


def test_a_delta_that_could_reveal_a_row_is_refused_for_single_examples(tmp_path: Path):
    door = site(tmp_path, "examples", 1 / ROWS)
    admitted = door.admit(job_of(recipe(MODES["examples"])))
    with fails_as("policy", f"reveal one of its {ROWS} rows"):
        door.count(admitted, TRAIN, SiteRows(ROWS), 100)
    door.count(admitted, TRAIN, SiteRows(ROWS - 1), 100)


def test_a_delta_of_whole_clients_has_nothing_to_do_with_rows(tmp_path: Path):
    door = site(tmp_path, "clients", 0.1)
    door.count(door.admit(job_of(recipe(MODES["clients"]))), TRAIN, SiteRows(ROWS), 100)
