"""A site says for itself in which encoding its rows are: no server states it, and none learns it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.deploy.job import make_job
from fftmoe.deploy.site import OpenSite, SiteSettings, open_site
from fftmoe.setup.deployment import recipe_from_text
from fftmoe.setup.places import for_sites
from policies import allow
from shared_fixtures import COLOURS
from sites import NAMES, fails_as, natural, over_sites

ROWS = "text,label\n" + "".join(f"ash bäy {c} dew,{c}\n" for c in COLOURS * 4)


@pytest.fixture
def values(recipe_values: dict[str, Any], data_folder: Path) -> dict[str, Any]:
    return over_sites(natural(recipe_values), data_folder)


def opened(folder: Path, values: dict[str, Any], encoding: str | None, stated: str | None) -> OpenSite:
    sent = {**values, "data": {**values["data"], "encoding": stated}}
    recipe = parse_recipe(sent, "test")
    allow(folder / "site", recipe, labels=list(COLOURS))
    job = make_job(recipe.model_dump(mode="json"), COLOURS, "abc1")
    site = SiteSettings(NAMES[0], 0, folder / "rows", "small", folder / "site", encoding=encoding)
    return open_site(site, json.loads(json.dumps(job)))


@pytest.mark.parametrize("stated", [None, "utf-16", "shift_jis"])
def test_a_server_cannot_say_how_a_sites_rows_are_read(tmp_path: Path, values: dict[str, Any], stated: str | None):
    found = []
    for name, encoding in (("utf-8", None), ("windows-1252", "windows-1252"), ("utf-16-le", "utf-16-le")):
        (tmp_path / name / "rows").mkdir(parents=True)
        (tmp_path / name / "rows" / "train.csv").write_bytes(ROWS.encode(name))
        site = opened(tmp_path / name, values, encoding, stated)
        found.append((site.client.bindings, site.client.rows))
    assert found[0] == found[1] == found[2]


def test_a_site_that_has_not_named_it_fails_with_a_code_whatever_the_server_names(
    tmp_path: Path, values: dict[str, Any]
):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_bytes(ROWS.encode("windows-1252"))
    for stated in (None, "windows-1252"):
        with fails_as("data", "if that is right: --encoding windows-1252"):
            opened(tmp_path, values, None, stated)
    with fails_as("data", "--encoding 'rot13' is no encoding"):
        opened(tmp_path, values, "rot13", None)


def test_a_server_does_not_send_the_encoding_of_its_own_rows(values: dict[str, Any]):
    recipe = recipe_from_text(json.dumps({**values, "data": {**values["data"], "encoding": "windows-1252"}}))
    assert "windows-1252" not in json.dumps(for_sites(recipe.model_dump(mode="json"), Path("/srv")))
