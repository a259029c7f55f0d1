"""What a server and a site say to each other before the first round is taken only as it was made."""

from typing import Any

import pytest

from fftmoe.deploy.job import MOST_TEXT, make_job, read_job, read_profile
from fftmoe.errors import InputError
from fftmoe.setup.deployment import SiteProfile

JOB = make_job({"seed": 1}, ("x", "y"), "abc1")
PROFILE: dict[str, Any] = {"site": "a", "client_id": 3, "tier": "small", "num_examples": 5, "backbone": "0" * 16}


@pytest.mark.parametrize("run", ["a", "Z9", "r" * 64])
def test_a_job_is_read_as_it_was_made(run: str):
    assert read_job({**JOB, "run": run}) == {"recipe": {"seed": 1}, "labels": ["x", "y"], "run": run}


@pytest.mark.parametrize(
    "change",
    [{"more": 1}, {"recipe": []}, {"labels": "xy"}, {"labels": ["x", 1]}, {"labels": [None]}, {"run": 7}],
    ids=str,
)
def test_a_job_of_another_form_is_refused(change: dict[str, Any]):
    with pytest.raises(InputError, match="the server's job is"):
        read_job({**JOB, **change})
    with pytest.raises(InputError, match="the server's job is"):
        read_job({name: value for name, value in JOB.items() if name not in change} | {"x": 1})


@pytest.mark.parametrize("run", ["", "r" * 65, "../a", "a/b", ".", "a b", "é", "a\n", "a\0"])
def test_a_run_that_could_not_be_a_folder_is_refused(run: str):
    with pytest.raises(InputError, match="the server calls its run"):
        read_job({**JOB, "run": run})


@pytest.mark.parametrize("change", [{"site": "s"}, {"tier": "t" * MOST_TEXT}, {"num_examples": 1}, {"client_id": 0}])
def test_a_profile_is_read_as_it_was_made(change: dict[str, Any]):
    assert read_profile({**PROFILE, **change}) == SiteProfile(**{**PROFILE, **change})


@pytest.mark.parametrize(
    "change",
    [
        *({name: text} for name in ("site", "tier") for text in ("", "t" * (MOST_TEXT + 1), "a\x1b[2J", "a\n", 5)),
        *({"num_examples": number} for number in (0, -1, 10**9 + 1, 5.0, True, "5")),
        *({"client_id": number} for number in (-1, 10**9 + 1, 1.0)),
        *({"backbone": text} for text in ("", "0" * 15, "0" * 17, "g" * 16, "A" * 16, "0" * 15 + "\n")),
        {"more": 1},
    ],
    ids=lambda change: repr(change)[:40],
)
def test_a_profile_that_cannot_be_true_is_refused(change: dict[str, Any]):
    with pytest.raises(InputError, match="a site described itself as"):
        read_profile({**PROFILE, **change})


@pytest.mark.parametrize("name", PROFILE)
def test_a_profile_without_a_value_is_refused(name: str):
    with pytest.raises(InputError, match="a site described itself as"):
        read_profile({other: value for other, value in PROFILE.items() if other != name})


@pytest.mark.parametrize("values", [[], None, "site", 3, {}])
def test_what_is_no_object_is_no_profile(values: Any):
    with pytest.raises(InputError, match="a site described itself as"):
        read_profile(values)
